"""Replays a bundle's conformance vectors through a session, before anybody is served by it.

The same chunks and the same decode steps as in service, so that what holds here holds there.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.errors import FailedPrecondition
from octavo.formats.conformance import Conformance, Verdict, log_probability
from octavo.v1.errors_pb2 import Reason
from services.inference.row_session import Logits, RowSession


class Rehearsal:
    """Greedy completion in row 0 of a session that serves nobody yet."""

    def __init__(self, session: RowSession, *, chunk_tokens: int) -> None:
        self._session = session
        self._chunk_tokens = chunk_tokens

    def verify(self, directory: Path, precision: str) -> Verdict:
        """Raises FailedPrecondition naming the first vector that does not hold on this machine, and how."""
        return Conformance.read(directory).verify(precision, self.complete)

    def complete(self, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        """The `count` most probable next tokens, each given those before, with their natural log-probabilities."""
        logits: Logits = self._read(np.array(prompt, np.int64))
        token_ids: list[int] = []
        log_probabilities: list[float] = []
        for length in range(len(prompt), len(prompt) + count):
            _require_numbers(logits, length)
            token_id = int(logits[0].argmax())
            token_ids.append(token_id)
            log_probabilities.append(log_probability(logits[0], token_id))
            if len(token_ids) < count:
                self._session.place(0, token_id, length)
                logits = self._session.decode(1)
        return token_ids, log_probabilities

    def _read(self, prompt: NDArray[np.int64]) -> NDArray[np.float32]:
        for start in range(0, len(prompt), self._chunk_tokens):
            logits = self._session.prefill(0, prompt[start : start + self._chunk_tokens], start)
        return logits


def _require_numbers(logits: Logits, length: int) -> None:
    if np.isnan(logits[0]).any():
        raise FailedPrecondition(
            Reason.REASON_CONFORMANCE_FAILED,
            f"the logits after {length} tokens are not numbers (nan): the weights or the graph are broken; export the "
            "version again",
        )
