"""One draw for each row of logits, within what top-k, min-p and top-p leave of it. Knows numbers; nothing of streams.

Every operation works row by row, in an order that a row's own terms and the size of the vocabulary fix, so that a
row's token never depends on its company. Of a large vocabulary a row is looked at whole as seldom as can be: of 32
rows of 50,257, a comparison takes 0.07 ms, an exponential 0.5, a partition 1.0 and a running sum 8.0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUCLEUS = 256
"""Candidates that top-p sorts first; it sorts the whole vocabulary only where these do not reach the mass."""
FEW = 1024
"""The largest top-k that is drawn from a list of candidates."""
GROUPS = 2048
"""Into so many groups a row is cut to find candidates; no larger vocabulary is worth cutting."""
BLOCK = 64
"""Tokens whose weights are summed up before the running sum."""

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Terms:
    """What the rows ask for: `sharpness` [m, 1] is 1 / temperature; `top_k` [m] is 0 for all.

    `min_p` [m, 1] and `top_p` [m] are None where no row asks for them.
    """

    sharpness: Floats
    top_k: Rows
    min_p: Floats | None
    top_p: NDArray[np.float64] | None

    def of(self, rows: Rows) -> "Terms":
        """The terms of some of the rows."""
        return Terms(
            self.sharpness[rows],
            self.top_k[rows],
            None if self.min_p is None else self.min_p[rows],
            None if self.top_p is None else self.top_p[rows],
        )


def draw(logits: Floats, best: Floats, terms: Terms, numbers: NDArray[np.float64]) -> Rows:
    """The token [m] that each row's number in [0, 1) falls on.

    `logits` are [m, vocab], and `best` [m, 1] the greatest of each row.
    """
    is_few = (terms.top_k > 0) & (terms.top_k <= FEW) & (logits.shape[1] > GROUPS)
    if is_few.all():
        return _draw_few(logits, best, terms, numbers)
    if not is_few.any():
        return _draw_many(logits, best, terms, numbers)
    tokens = np.empty(len(logits), np.int64)
    for draw_rows, rows in ((_draw_few, np.flatnonzero(is_few)), (_draw_many, np.flatnonzero(~is_few))):
        tokens[rows] = draw_rows(logits[rows], best[rows], terms.of(rows), numbers[rows])
    return tokens


def _draw_few(logits: Floats, best: Floats, terms: Terms, numbers: NDArray[np.float64]) -> Rows:
    """Where top-k leaves few tokens: from a list of candidates, in the order of their ids."""
    tokens, values = candidates(logits, terms.top_k)
    scaled = (values - best) * terms.sharpness
    _keep_top_k(scaled, terms.top_k)
    mass = _weights(scaled, terms).cumsum(axis=1, dtype=np.float64)
    chosen = (mass > (numbers * mass[:, -1])[:, None]).argmax(axis=1)
    drawn: Rows = tokens[np.arange(len(tokens)), chosen]
    return drawn


def _draw_many(logits: Floats, best: Floats, terms: Terms, numbers: NDArray[np.float64]) -> Rows:
    """Where many tokens may be left: all weights, in blocks."""
    scaled = logits - best
    scaled *= terms.sharpness
    _keep_top_k(scaled, terms.top_k)
    weights = _weights(scaled, terms)
    count, vocab = weights.shape
    if vocab <= GROUPS:
        mass = weights.cumsum(axis=1, dtype=np.float64)
        found: Rows = (mass > (numbers * mass[:, -1])[:, None]).argmax(axis=1)
        return found
    blocks = vocab // BLOCK
    sums = np.empty((count, blocks + 1), np.float32)
    np.einsum("ijk->ij", weights[:, : blocks * BLOCK].reshape(count, blocks, BLOCK), out=sums[:, :blocks])
    sums[:, blocks] = weights[:, blocks * BLOCK :].sum(axis=1)
    mass = sums.cumsum(axis=1, dtype=np.float64)
    aims = numbers * mass[:, -1]
    tokens = np.empty(count, np.int64)
    for row, block in enumerate((mass > aims[:, None]).argmax(axis=1).tolist()):
        inner = weights[row, block * BLOCK : (block + 1) * BLOCK].cumsum(dtype=np.float64)
        # The block's sum was rounded otherwise: an aim between the two is its last token's.
        aim = min(aims[row] - (mass[row, block - 1] if block else 0.0), np.nextafter(inner[-1], 0))
        tokens[row] = block * BLOCK + (inner > aim).argmax()
    return tokens


def candidates(logits: Floats, most: Rows) -> tuple[Rows, Floats]:
    """Ids and values [m, c] of tokens among which are the `most` [m] largest of each row, in the order of their ids.

    Cut into groups, a row has at least k values that are no smaller than the k-th largest of the groups' maxima. Rows
    with fewer candidates are filled up with minus infinity. For vocabularies above GROUPS, and `most` below.
    """
    count, vocab = logits.shape
    whole = vocab // GROUPS * GROUPS
    maxima = logits[:, :whole].reshape(count, -1, GROUPS).max(axis=1)
    ranks = GROUPS - most
    bounds = np.partition(maxima, np.unique(ranks), axis=1)[np.arange(count), ranks, None]
    # What is excluded altogether is no candidate.
    at = np.flatnonzero(logits >= np.maximum(bounds, np.finfo(np.float32).min))
    rows, tokens = np.divmod(at, vocab)
    counts = np.bincount(rows, minlength=count)
    places = np.arange(len(at)) - np.repeat(counts.cumsum() - counts, counts)
    width = max(1, int(counts.max()))
    ids, values = np.zeros((count, width), np.int64), np.full((count, width), -np.inf, np.float32)
    ids[rows, places] = tokens
    values[rows, places] = logits.ravel()[at]
    return ids, values


def _weights(scaled: Floats, terms: Terms) -> Floats:
    """The weights [m, n] of scaled logits, in place: the best weighs 1, what min-p and top-p exclude nothing."""
    weights = np.exp(scaled, out=scaled)
    if terms.min_p is not None:
        weights *= weights >= terms.min_p
    if terms.top_p is not None:
        _keep_top_p(weights, terms.top_p)
    return weights


def _keep_top_k(scaled: Floats, top_k: Rows) -> None:
    """Excludes, in place, what is smaller than a row's k-th largest; ties with it stay."""
    width = scaled.shape[1]
    for k in np.unique(top_k).tolist():
        if 0 < k < width:
            rows = np.flatnonzero(top_k == k)
            chosen = scaled[rows]
            least = np.partition(chosen, width - k, axis=1)[:, width - k, None]
            chosen[chosen < least] = -np.inf
            scaled[rows] = chosen


def _keep_top_p(weights: Floats, top_p: NDArray[np.float64]) -> None:
    """Sets to zero, in place, what the fewest largest weights with the share `top_p` [m] do not need; ties stay."""
    share = np.where(top_p < 1, top_p * weights.sum(axis=1, dtype=np.float64), np.inf)
    least = np.zeros(len(weights), np.float32)
    open_rows = np.flatnonzero(top_p < 1)
    for count in sorted({min(NUCLEUS, weights.shape[1]), weights.shape[1]}):
        descending = _largest(weights[open_rows], count)
        has_share = descending.cumsum(axis=1, dtype=np.float64) >= share[open_rows, None]
        reached = has_share[:, -1]
        least[open_rows] = np.where(reached, descending[np.arange(len(open_rows)), has_share.argmax(axis=1)], 0)
        open_rows = open_rows[~reached]
    weights *= weights >= least[:, None]


def _largest(weights: Floats, count: int) -> Floats:
    """The `count` largest of each row, the greatest first."""
    if weights.shape[1] > GROUPS and count < GROUPS and len(weights):
        _, weights = candidates(weights, np.full(len(weights), count))
    least = weights.shape[1] - count
    chosen = weights if least <= 0 else np.partition(weights, least, axis=1)[:, least:]
    return np.maximum(np.sort(chosen, axis=1)[:, ::-1], 0)
