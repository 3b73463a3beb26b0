"""Chooses the next tokens, for all rows at once. Knows logits and random numbers; nothing of sequences or text.

A row's token depends on its own logits, settings and stream alone. The stream is counter-based: the number for a
sequence's k-th token is a pure function of (seed, stream, k), by Philox (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3").
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.inference.lottery import Terms, draw
from services.inference.penalties import Bender, Bending

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

    @property
    def sharpness(self) -> float:
        """1 / temperature, where tokens are drawn."""
        # Beyond 1e6, differences of 1e-5 between logits already decide: float32 has no finer ones.
        return 1.0 if self.is_greedy else min(1 / self.temperature, 1e6)

    def draws(self, count: int) -> NDArray[np.float64]:
        """The first `count` numbers of the stream, each in [0, 1)."""
        key = np.array([self.seed, self.stream], np.uint64)  # a plain list would become float64 from 2**63 on
        draws = np.random.Generator(np.random.Philox(key=key)).random(count)
        # Rounding would lift a total times a number nearer to 1 to the total itself, which no token's mass exceeds.
        return np.minimum(draws, 1 - 2.0**-50)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run of rows asks for, worked out once until one of them changes.

    `drawing` are the rows that draw, counted from the first of the run, in `slots` of the sampler; None where all do.
    `bent` are the rows whose logits are changed before.
    """

    drawing: Rows | None
    slots: Rows
    terms: Terms
    bent: tuple[tuple[int, Sequence[Bender]], ...]


class Sampler:
    """The settings and streams of all rows; `capacity` is the most tokens that any of them generates."""

    def __init__(self, *, slots: int, capacity: int) -> None:
        self._settings = [Sampling(temperature=0)] * slots
        self._draws = np.zeros((slots, capacity), np.float64)
        self._drawn = np.zeros(slots, np.int64)
        self._benders: list[Sequence[Bender]] = [()] * slots
        self._plans: dict[tuple[int, int], Plan] = {}

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

    def upcoming(self, count: int) -> NDArray[np.float64]:
        """The next `count` numbers of every row's stream, [slots, count]; zeros behind a stream's end."""
        numbers = np.zeros((len(self._draws), count), np.float64)
        for row, first in enumerate(self._drawn):
            found = self._draws[row, first : first + count]
            numbers[row, : len(found)] = found
        return numbers

    def skip(self, rows: Rows) -> None:
        """Passes over one number of the streams of `rows`: somebody else has used it."""
        self._drawn[rows] += 1

    def sample(self, logits: Floats, first_row: int = 0) -> Rows:
        """The next token [n] of the rows from `first_row`, given their logits [n, vocab]; -1 where these are NaN."""
        run = (first_row, len(logits))
        plan = self._plans.get(run)
        if plan is None:
            plan = self._plans[run] = self._planned(*run)
        if plan.bent:
            logits = logits.copy()
            for row, benders in plan.bent:
                for bender in benders:
                    bender.bend(logits[row])
        tokens = self._chosen(logits, plan)
        for row, benders in plan.bent:
            for bender in benders if tokens[row] >= 0 else ():
                bender.note(int(tokens[row]))
        return tokens

    def _chosen(self, logits: Floats, plan: Plan) -> Rows:
        tokens: Rows = logits.argmax(axis=1)
        best = logits[np.arange(len(logits)), tokens]
        # NaN counts as the greatest. Told before anything is drawn, which would make a token of it.
        is_nan = np.isnan(best)
        if len(plan.slots):
            numbers = self._draws[plan.slots, self._drawn[plan.slots]]
            self._drawn[plan.slots] += 1
            if plan.drawing is None:
                tokens = draw(logits, best[:, None], plan.terms, numbers)
            else:
                tokens[plan.drawing] = draw(logits[plan.drawing], best[plan.drawing, None], plan.terms, numbers)
        if is_nan.any():
            tokens[is_nan] = -1
        return tokens

    def _planned(self, first_row: int, count: int) -> Plan:
        settings = self._settings[first_row : first_row + count]
        benders = self._benders[first_row : first_row + count]
        drawing = np.array([row for row, sampling in enumerate(settings) if not sampling.is_greedy], np.int64)
        return Plan(
            drawing=None if len(drawing) == count else drawing,
            slots=drawing + first_row,
            terms=_terms([settings[row] for row in drawing]),
            bent=tuple((row, bending) for row, bending in enumerate(benders) if bending),
        )


def _terms(chosen: list[Sampling]) -> Terms:
    sharpness = [sampling.sharpness for sampling in chosen]
    min_p = np.array([sampling.min_p for sampling in chosen], np.float32)
    top_p = np.array([sampling.top_p for sampling in chosen], np.float64)
    return Terms(
        sharpness=np.array(sharpness, np.float32)[:, None],
        top_k=np.array([sampling.top_k for sampling in chosen], np.int64),
        min_p=min_p[:, None] if min_p.any() else None,
        top_p=top_p if (top_p < 1).any() else None,
    )
