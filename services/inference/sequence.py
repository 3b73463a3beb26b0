"""One request inside the engine: what it asks for, where it stands, what it has said."""

from collections.abc import Mapping
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from octavo.errors import OctavoError
from octavo.v1.inference_pb2 import FinishReason
from services.inference.constraint import Constraint
from services.inference.outbox import Delivery, Ending, Outbox
from services.inference.penalties import Bender, LeastLength, Penalties
from services.inference.sampler import Sampling
from services.inference.scoring import TokenScore
from services.inference.transcript import Transcript

UNFINISHED = FinishReason.FINISH_REASON_UNSPECIFIED


class Sequence:
    """A prompt and its continuation.

    `prompt` int64 [n], n at least 1; `token_limit` tokens are generated at most, and `limit_reason` says which limit
    that is; a token of `endings` ends it and says why; `least` tokens come before any end; `constraint` holds it to a
    form. `deadline_s` is a time of `perf_counter`. With `logprobs`, each token is scored, with so many of the best at
    its place.
    """

    def __init__(
        self,
        prompt: NDArray[np.int64],
        *,
        sampling: Sampling,
        token_limit: int,
        limit_reason: FinishReason.ValueType,
        endings: Mapping[int, FinishReason.ValueType],
        transcript: Transcript,
        outbox: Outbox,
        least: int = 0,
        constraint: Constraint | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        logprobs: int | None = None,
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.token_limit = token_limit
        self.transcript = transcript
        self.outbox = outbox
        self.priority = priority
        self.deadline_s = deadline_s
        self.logprobs = logprobs
        self.token_ids: list[int] = []
        self.scores: list[TokenScore] = []
        self.finish_reason = UNFINISHED
        self.is_over = False
        self.row = -1
        self.read = 0
        self.reused = 0
        self.arrival_s = perf_counter()
        self.start_s = self.first_token_s = self.arrival_s
        self._endings = endings
        self._limit_reason = limit_reason
        self._least = least
        self._constraint = constraint
        self._sent = 0

    @property
    def length(self) -> int:
        """Tokens of prompt and continuation."""
        return len(self.prompt) + len(self.token_ids)

    @property
    def failure(self) -> OctavoError | None:
        """Why it cannot go on, if it cannot."""
        return self._constraint.failure if self._constraint else None

    def benders(self, vocab_size: int) -> list[Bender]:
        """What changes the logits [vocab] of its tokens, in this order: what excludes tokens has the last word."""
        benders: list[Bender] = []
        if not self.sampling.bending.changes_nothing:
            benders.append(Penalties(self.sampling.bending, self.prompt, vocab_size))
        if self._least:
            benders.append(LeastLength(self._least, self._endings))
        if self._constraint:
            benders.append(self._constraint)
        return benders

    def append(self, token_id: int) -> bool:
        """Adds a generated token; True when it is the last."""
        self.token_ids.append(token_id)
        if token_id in self._endings:
            self.finish_reason = self._endings[token_id]
        elif self.transcript.append(token_id, may_stop=len(self.token_ids) >= self._least):
            self.finish_reason = FinishReason.FINISH_REASON_STOP_TEXT
        elif self._constraint and self._constraint.is_complete:
            self.finish_reason = FinishReason.FINISH_REASON_FORM_COMPLETE
        elif len(self.token_ids) >= self.token_limit:
            self.finish_reason = self._limit_reason
        return self.finish_reason != UNFINISHED

    def news(self) -> Delivery | None:
        """The text that has become certain since the last call, with the tokens since then; None if there is none."""
        text = self.transcript.take()
        if not text:
            return None
        return Delivery(text, *self._unsent())

    def last_news(self, error: OctavoError | None = None) -> Delivery:
        """All that is left, and how it ended."""
        self.is_over = True
        ending = Ending(
            finish_reason=self.finish_reason,
            stop=self.transcript.stop,
            error=error,
            arrival_s=self.arrival_s,
            start_s=self.start_s,
            first_token_s=self.first_token_s,
            end_s=perf_counter(),
            token_count=len(self.token_ids),
        )
        return Delivery(self.transcript.take_last(), *self._unsent(), ending)

    def _unsent(self) -> tuple[list[int], list[TokenScore]]:
        token_ids, scores = self.token_ids[self._sent :], self.scores[self._sent :]
        self._sent = len(self.token_ids)
        return token_ids, scores
