"""Chooses the next tokens, for all rows at once. Knows logits and random numbers; nothing of sequences or text.

Every operation works row by row, so that a row's token depends on its own logits, settings and stream alone. The
stream is counter-based: the number for a sequence's k-th token is a pure function of (seed, stream, k), by Philox
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.inference.penalties import Bender, Bending

NUCLEUS = 256
"""Candidates that top-p sorts first; it sorts the whole vocabulary only where these do not reach the mass."""

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one sequence's tokens are chosen; valid by construction of `parameters`.

    `temperature` 0 takes the most probable token. `top_k` 0 and `top_p` 1 and `min_p` 0 exclude nothing. `stream`
    tells the completions of one request apart.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stream: int = 0
    bending: Bending = field(default_factory=Bending)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    def draws(self, count: int) -> NDArray[np.float64]:
        """The first `count` numbers of the stream, each in [0, 1)."""
        key = np.array([self.seed, self.stream], np.uint64)  # a plain list would become float64 from 2**63 on
        draws = np.random.Generator(np.random.Philox(key=key)).random(count)
        # Rounding would lift a total times a number nearer to 1 to the total itself, which no token's mass exceeds.
        return np.minimum(draws, 1 - 2.0**-50)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run of rows asks for, worked out once until one of them changes.

    `drawing` are the rows that draw, counted from the first of the run, None for all of them; everything else is in
    their order. `sharpness` is 1 / temperature, [m, 1]; `top_k` groups them by k; None where nobody asks for it.
    """

    drawing: Rows | None
    slots: Rows
    sharpness: Floats
    top_k: tuple[tuple[int, Rows], ...]
    min_p: Floats | None
    top_p: NDArray[np.float64] | None


class Sampler:
    """The settings and streams of all rows; `capacity` is the most tokens that any of them generates."""

    def __init__(self, *, slots: int, capacity: int) -> None:
        self._settings = [Sampling(temperature=0)] * slots
        self._draws = np.zeros((slots, capacity), np.float64)
        self._drawn = np.zeros(slots, np.int64)
        self._benders: list[Sequence[Bender]] = [()] * slots
        self._plans: dict[tuple[int, int], Plan | None] = {}

    def place(self, row: int, sampling: Sampling, count: int, benders: Sequence[Bender] = ()) -> None:
        """Makes `row` sample like this, for at most `count` tokens, its logits bent by `benders` one after another."""
        self._settings[row] = sampling
        self._benders[row] = benders
        self._plans.clear()
        if not sampling.is_greedy:
            self._draws[row, :count] = sampling.draws(count)
            self._drawn[row] = 0

    def move(self, source: int, target: int) -> None:
        """Makes row `target` what row `source` is."""
        self._settings[target] = self._settings[source]
        self._benders[target] = self._benders[source]
        self._draws[target] = self._draws[source]
        self._drawn[target] = self._drawn[source]
        self._plans.clear()

    def sample(self, logits: Floats, first_row: int = 0) -> Rows:
        """The next token [n] of the rows from `first_row`, given their logits [n, vocab]; -1 where these are NaN."""
        benders = self._benders[first_row : first_row + len(logits)]
        if any(benders):
            logits = logits.copy()
            for row, bending in enumerate(benders):
                for bender in bending:
                    bender.bend(logits[row])
        best = logits.max(axis=1, keepdims=True)
        tokens = self._chosen(logits, best, first_row)
        if np.isnan(best.sum()):
            tokens = np.where(np.isnan(best[:, 0]), -1, tokens)
        for row, bending in enumerate(benders):
            for bender in bending if tokens[row] >= 0 else ():
                bender.note(int(tokens[row]))
        return tokens

    def _chosen(self, logits: Floats, best: Floats, first_row: int) -> Rows:
        run = (first_row, len(logits))
        if run not in self._plans:
            self._plans[run] = self._planned(*run)
        plan = self._plans[run]
        if plan is not None and plan.drawing is None:
            return self._drawn_tokens(logits - best, plan)
        tokens: Rows = logits.argmax(axis=1)
        if plan is not None:
            tokens[plan.drawing] = self._drawn_tokens(logits[plan.drawing] - best[plan.drawing], plan)
        return tokens

    def _planned(self, first_row: int, count: int) -> Plan | None:
        """None where every row is greedy."""
        settings = self._settings[first_row : first_row + count]
        drawing = np.array([row for row, sampling in enumerate(settings) if not sampling.is_greedy], np.int64)
        if not len(drawing):
            return None
        chosen = [settings[row] for row in drawing]
        # Beyond 1e6, differences of 1e-5 between logits already decide: float32 has no finer ones.
        sharpness = [min(1 / sampling.temperature, 1e6) for sampling in chosen]
        ks = np.array([sampling.top_k for sampling in chosen])
        min_p = np.array([sampling.min_p for sampling in chosen], np.float32)
        top_p = np.array([sampling.top_p for sampling in chosen], np.float64)
        return Plan(
            drawing=None if len(drawing) == count else drawing,
            slots=drawing + first_row,
            sharpness=np.array(sharpness, np.float32)[:, None],
            top_k=tuple((k, np.flatnonzero(ks == k)) for k in sorted(set(ks.tolist())) if k),
            min_p=min_p[:, None] if min_p.any() else None,
            top_p=top_p if (top_p < 1).any() else None,
        )

    def _drawn_tokens(self, scaled: Floats, plan: Plan) -> Rows:
        """One draw for each row of `scaled` [m, vocab], logits less their greatest, which steps the row's stream."""
        scaled *= plan.sharpness
        for k, rows in plan.top_k:
            _keep_top_k(scaled, k, rows)
        weights = np.exp(scaled, out=scaled)  # the best one weighs 1
        if plan.min_p is not None:
            weights[weights < plan.min_p] = 0
        if plan.top_p is not None:
            _keep_top_p(weights, plan.top_p)
        mass = weights.cumsum(axis=1, dtype=np.float64)
        aim = self._draws[plan.slots, self._drawn[plan.slots]] * mass[:, -1]
        self._drawn[plan.slots] += 1
        tokens: Rows = (mass > aim[:, None]).argmax(axis=1)
        return tokens


def _keep_top_k(scaled: Floats, k: int, rows: Rows) -> None:
    """Excludes, in place, what is smaller than a row's k-th largest; ties with it stay."""
    vocab = scaled.shape[1]
    if k < vocab:
        chosen = scaled if len(rows) == len(scaled) else scaled[rows]
        least = np.partition(chosen, vocab - k, axis=1)[:, vocab - k, None]
        chosen[chosen < least] = -np.inf
        if chosen is not scaled:
            scaled[rows] = chosen


def _keep_top_p(weights: Floats, top_p: NDArray[np.float64]) -> None:
    """Sets to zero, in place, what the fewest largest weights with the share `top_p` [m] do not need; ties stay."""
    share = np.where(top_p < 1, top_p * weights.sum(axis=1, dtype=np.float64), np.inf)
    least = np.zeros(len(weights), np.float32)
    vocab = weights.shape[1]
    open_rows = np.flatnonzero(top_p < 1)
    for count in sorted({min(NUCLEUS, vocab), vocab}):
        chosen = weights[open_rows]
        largest = chosen if count == vocab else np.partition(chosen, vocab - count, axis=1)[:, vocab - count :]
        descending = np.sort(largest, axis=1)[:, ::-1]
        has_share = descending.cumsum(axis=1, dtype=np.float64) >= share[open_rows, None]
        reached = has_share[:, -1]
        least[open_rows] = np.where(reached, descending[np.arange(len(chosen)), has_share.argmax(axis=1)], 0)
        open_rows = open_rows[~reached]
    weights[weights < least[:, None]] = 0
