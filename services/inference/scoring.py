"""Log-probabilities and vectors of given texts. Knows logits and hidden states; nothing of requests or gRPC."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

import numpy as np
from numpy.typing import NDArray

from octavo.errors import DataLoss
from octavo.v1.errors_pb2 import Reason
from services.inference.score_session import ScoreSession

BLOCK_ROWS = 64
"""Rows that are widened to float64 at a time: 26 MB for a vocabulary of 50,257."""

Floats = NDArray[np.float32]
Wide = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """One token: its natural log-probability (None with nothing before it), and the best tokens at its place."""

    token_id: int
    log_probability: float | None
    best: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Score:
    """The tokens of one text, and whether each was the most probable at its place."""

    tokens: list[TokenScore]
    is_greedy: bool = True


def score(session: ScoreSession, pairs: Sequence[tuple[list[int], list[int]]], top: int, left: Event) -> list[Score]:
    """Scores the tokens of each continuation after its context, for the pairs of one group of the session.

    `top` best tokens are told for each place. Log-probabilities are computed in float64. Raises DataLoss where the
    model's logits are not numbers.
    """
    texts = [np.array(context + continuation, np.int64) for context, continuation in pairs]
    scores = [
        Score([] if context else [TokenScore(token_id=continuation[0], log_probability=None)])
        for context, continuation in pairs
    ]
    firsts = [max(len(context) - 1, 0) for context, _ in pairs]
    # A single token has nothing before it, and nothing is read for it.
    if len(texts[0]) > 1:
        for reading in session.read([text[:-1] for text in texts], firsts, left):
            targets = texts[reading.text][reading.start + 1 :][: len(reading.logits)]
            _add(scores[reading.text], reading.logits, targets, top)
    return scores


def embed(session: ScoreSession, texts: Sequence[list[int]], left: Event, *, takes_last: bool) -> list[Wide]:
    """The mean of each text's last hidden states, or the last of them, [width]; for the texts of one group."""
    firsts = [len(text) - 1 if takes_last else 0 for text in texts]
    totals: list[Wide] = [np.zeros(0)] * len(texts)
    for reading in session.read([np.array(text, np.int64) for text in texts], firsts, left):
        total = totals[reading.text]
        totals[reading.text] = reading.hidden.astype(np.float64).sum(axis=0) + (total if total.size else 0)
    return [total / (1 if takes_last else len(text)) for total, text in zip(totals, texts, strict=True)]


def scaled(vector: Wide, *, dimensions: int, normalize: bool) -> list[float]:
    """The first `dimensions` numbers of a vector, at length 1 if asked."""
    vector = vector[:dimensions]
    length = float(np.linalg.norm(vector))
    values: list[float] = (vector / length if normalize and length else vector).tolist()
    return values


def token_scores(logits: Floats, targets: NDArray[np.int64], top: int) -> list[TokenScore]:
    """The scores of `targets` [n] by logits [n, vocab], with the `top` best tokens at each place."""
    wide = logits.astype(np.float64)
    wide -= logits.max(axis=1, keepdims=True)
    chosen = wide[np.arange(len(targets)), targets]
    best = [_best(row, top) for row in wide] if top else []
    log_total = np.log(np.exp(wide, out=wide).sum(axis=1))
    chosen -= log_total
    if np.isnan(chosen).any():
        raise DataLoss(Reason.REASON_INTERNAL, "the model's logits are not numbers; its weights or the run are broken")
    found = zip(targets.tolist(), chosen.tolist(), strict=True)
    if not top:
        return [TokenScore(token_id=token_id, log_probability=value) for token_id, value in found]
    return [
        TokenScore(
            token_id=token_id,
            log_probability=value,
            best=tuple((candidate, above - total) for candidate, above in row),
        )
        for (token_id, value), row, total in zip(found, best, log_total.tolist(), strict=True)
    ]


def mean_log_probability(scores: list[TokenScore]) -> float:
    """Of the tokens that have one, which tells completions of different lengths apart; 0 where none has."""
    known = [entry.log_probability for entry in scores if entry.log_probability is not None]
    return math.fsum(known) / len(known) if known else 0.0


def _add(found: Score, logits: Floats, targets: NDArray[np.int64], top: int) -> None:
    for block in range(0, len(targets), BLOCK_ROWS):
        rows, wanted = logits[block : block + BLOCK_ROWS], targets[block : block + BLOCK_ROWS]
        found.tokens += token_scores(rows, wanted, top)
        found.is_greedy = found.is_greedy and bool((rows.argmax(axis=1) == wanted).all())


def _best(row: Wide, top: int) -> list[tuple[int, float]]:
    """The `top` greatest of a row [vocab], greatest first, ties by token id."""
    candidates = np.sort(np.argpartition(row, len(row) - min(top, len(row)))[-top:])
    order = candidates[np.argsort(-row[candidates], kind="stable")]
    return list(zip(order.tolist(), row[order].tolist(), strict=True))
