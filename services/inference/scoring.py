"""Log-probabilities and vectors of given texts. Knows logits and hidden states; nothing of requests or gRPC."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.inference.score_session import ScoreSession

BLOCK_ROWS = 64
"""Rows that are widened to float64 at a time: 26 MB for a vocabulary of 50,257."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """One token: its natural log-probability (None with nothing before it), and the best tokens at its place."""

    token_id: int
    log_probability: float | None
    best: tuple[tuple[int, float], ...] = ()


def score(
    session: ScoreSession, context: list[int], continuation: list[int], top: int
) -> tuple[list[TokenScore], bool]:
    """Scores the tokens of `continuation` after `context`; and whether each was the most probable at its place.

    `top` best tokens are told for each place. Log-probabilities are computed in float64.
    """
    token_ids = np.array(context + continuation, np.int64)
    scores = [] if context else [TokenScore(token_id=continuation[0], log_probability=None)]
    first = max(len(context), 1)  # the position of the first token that has something before it
    is_greedy = True
    for start, logits, _ in session.read(token_ids[:-1]):
        begin = max(first - 1 - start, 0)
        for block in range(begin, len(logits), BLOCK_ROWS):
            rows = logits[block : block + BLOCK_ROWS]
            targets = token_ids[start + block + 1 : start + block + 1 + len(rows)]
            rows = rows[: len(targets)]
            wide = log_softmax(rows)
            is_greedy = is_greedy and bool((wide.argmax(axis=1) == targets).all())
            scores += [token_score(row, int(target), top) for row, target in zip(wide, targets, strict=True)]
    return scores, is_greedy


def embed(
    session: ScoreSession, token_ids: list[int], *, takes_last: bool, dimensions: int, normalize: bool
) -> list[float]:
    """The mean of the last hidden states, or the last of them; its first `dimensions` numbers, at length 1 if asked."""
    total = np.zeros(0)
    for _, _, hidden in session.read(np.array(token_ids, np.int64)):
        wide = hidden.astype(np.float64)
        total = wide[-1] if takes_last else wide.sum(axis=0) + (total if total.size else 0)
    vector = (total if takes_last else total / len(token_ids))[:dimensions]
    length = float(np.linalg.norm(vector))
    values: list[float] = (vector / length if normalize and length else vector).tolist()
    return values


def log_softmax(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural log-probabilities [n, vocab] of logits [n, vocab], in float64."""
    wide = rows.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def token_score(row: NDArray[np.float64], token_id: int, top: int) -> TokenScore:
    """A token's score, and the `top` best ones, from the log-probabilities [vocab] at its place; ties by token id."""
    best: tuple[tuple[int, float], ...] = ()
    if top:
        candidates = np.sort(np.argpartition(row, len(row) - min(top, len(row)))[-top:])
        order = candidates[np.argsort(-row[candidates], kind="stable")]
        best = tuple((int(candidate), float(row[candidate])) for candidate in order)
    return TokenScore(token_id=token_id, log_probability=float(row[token_id]), best=best)


def mean_log_probability(scores: list[TokenScore]) -> float:
    """Of the tokens that have one, which tells completions of different lengths apart; 0 where none has."""
    known = [entry.log_probability for entry in scores if entry.log_probability is not None]
    return math.fsum(known) / len(known) if known else 0.0
