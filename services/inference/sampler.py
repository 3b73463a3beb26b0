"""Chooses the next tokens, for all rows at once. Knows logits and random numbers; nothing of sequences or text.

Every operation works row by row, so that a row's token depends on its own logits, settings and stream alone. The
stream is counter-based: the number for a sequence's k-th token is a pure function of (seed, stream, k), by Philox
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUCLEUS = 256
"""Candidates that top-p sorts first; it sorts the whole vocabulary only where these do not reach the mass."""


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

    def draws(self, count: int) -> NDArray[np.float64]:
        """The first `count` numbers of the stream, each in [0, 1)."""
        return np.random.Generator(np.random.Philox(key=[self.seed, self.stream])).random(count)


class Sampler:
    """The settings and streams of all rows, kept as arrays [slots]."""

    def __init__(self, *, slots: int, capacity: int) -> None:
        self._sharpness = np.zeros(slots, np.float32)  # 1 / temperature; 0 stands for greedy
        self._top_k = np.zeros(slots, np.int64)
        self._top_p = np.ones(slots, np.float64)
        self._min_p = np.zeros(slots, np.float32)
        self._draws = np.zeros((slots, capacity), np.float64)
        self._drawn = np.zeros(slots, np.int64)
        self._is_greedy = [True] * slots

    def place(self, row: int, sampling: Sampling, count: int) -> None:
        """Makes `row` sample like this, for at most `count` tokens."""
        self._is_greedy[row] = sampling.temperature == 0
        if sampling.temperature == 0:
            self._sharpness[row] = 0
            return
        # Beyond 1e6, differences of 1e-5 between logits already decide: float32 has no finer ones.
        self._sharpness[row] = min(1 / sampling.temperature, 1e6)
        self._top_k[row] = sampling.top_k
        self._top_p[row] = sampling.top_p
        self._min_p[row] = sampling.min_p
        self._draws[row, :count] = sampling.draws(count)
        self._drawn[row] = 0

    def move(self, source: int, target: int) -> None:
        """Makes row `target` what row `source` is."""
        self._is_greedy[target] = self._is_greedy[source]
        for settings in (self._sharpness, self._top_k, self._top_p, self._min_p, self._draws, self._drawn):
            settings[target] = settings[source]

    def sample(self, logits: NDArray[np.float32], first_row: int = 0) -> NDArray[np.int64]:
        """The next token [n] of the rows from `first_row`, given their logits [n, vocab]; -1 where these are NaN."""
        rows = slice(first_row, first_row + len(logits))
        tokens: NDArray[np.int64] = logits.argmax(axis=1)
        best = logits[np.arange(len(logits)), tokens]
        if np.isnan(best.sum()):
            tokens = np.where(np.isnan(best), -1, tokens)
        if not all(self._is_greedy[rows]):
            self._draw(logits, best, rows, tokens)
        return tokens

    def _draw(
        self, logits: NDArray[np.float32], best: NDArray[np.float32], rows: slice, tokens: NDArray[np.int64]
    ) -> None:
        """Replaces the tokens of those rows that are not greedy, and steps their streams."""
        chosen = np.flatnonzero((self._sharpness[rows] > 0) & (tokens >= 0))
        index = chosen + rows.start
        scaled = (logits[chosen] - best[chosen, None]) * self._sharpness[index, None]
        _keep_top_k(scaled, self._top_k[index])
        weights = np.exp(scaled)  # the best one weighs 1
        weights[weights < self._min_p[index, None]] = 0
        _keep_top_p(weights, self._top_p[index])
        mass = weights.cumsum(axis=1, dtype=np.float64)
        total = mass[:, -1]
        aim = self._draws[index, self._drawn[index]] * total
        # Rounding may lift the product to the total itself, which no token reaches.
        aim = np.minimum(aim, np.nextafter(total, 0))
        tokens[chosen] = (mass > aim[:, None]).argmax(axis=1)
        self._drawn[index] += 1


def _keep_top_k(scaled: NDArray[np.float32], top_k: NDArray[np.int64]) -> None:
    """Excludes, in place, what is smaller than the row's k-th largest; ties with it stay."""
    vocab = scaled.shape[1]
    for k in set(top_k.tolist()):
        if 0 < k < vocab:
            rows = np.flatnonzero(top_k == k)
            least = np.partition(scaled[rows], vocab - k, axis=1)[:, vocab - k]
            scaled[rows] = np.where(scaled[rows] < least[:, None], -np.inf, scaled[rows])


def _keep_top_p(weights: NDArray[np.float32], top_p: NDArray[np.float64]) -> None:
    """Sets to zero, in place, all but the fewest largest weights that together have the share `top_p` of the row."""
    for row in np.flatnonzero(top_p < 1).tolist():
        share = top_p[row] * weights[row].sum(dtype=np.float64)
        kept = _nucleus(weights[row], share, min(NUCLEUS, weights.shape[1]))
        if kept is None:
            kept = _nucleus(weights[row], share, weights.shape[1])
        if kept is not None:
            values = weights[row, kept]
            weights[row] = 0
            weights[row, kept] = values


def _nucleus(weights: NDArray[np.float32], share: float, count: int) -> NDArray[np.int64] | None:
    """The fewest largest of `weights` [vocab] that sum to `share`, among the `count` largest; None if all do not."""
    vocab = len(weights)
    candidates = (
        np.sort(np.argpartition(weights, vocab - count)[vocab - count :]) if count < vocab else np.arange(vocab)
    )
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    reached = np.flatnonzero(weights[order].cumsum(dtype=np.float64) >= share)
    return order[: int(reached[0]) + 1] if len(reached) else None
