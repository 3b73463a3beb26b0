"""The step loop: reads prompts, decodes every running sequence by one token, sends the news. A thread of its own.

    receive   new sequences and cancellations, at a step's border only
    read      a chunk's worth of prompts; the end of a prompt gives its first token
    decode    one token for every running sequence, in one run of the graph
    publish   what readers wait for, with one wake-up of the event loop

Knows sequences and rows; nothing of gRPC, of names or of versions.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from octavo.errors import Cancelled, DataLoss, DeadlineExceeded, Internal, OctavoError, Unavailable
from octavo.v1.errors_pb2 import Reason
from services.inference.meter import Meter
from services.inference.outbox import Courier
from services.inference.row_session import Logits, RowSampler, RowSession
from services.inference.scheduler import Move, PromptRun, Scheduler
from services.inference.scoring import token_scores
from services.inference.sequence import Sequence

DEADLINE_INTERVAL_S = 0.01
"""How often running deadlines are looked at, in seconds."""


class Engine:
    """One served version at work. `submit`, `cancel` and `stop` may be called from any thread."""

    def __init__(
        self,
        *,
        session: RowSession,
        scheduler: Scheduler,
        sampler: RowSampler,
        courier: Courier,
        messages_per_s: int,
        name: str,
        logger: logging.Logger,
    ) -> None:
        self.meter = Meter()
        self.scheduler = scheduler
        self._session = session
        self._sampler = sampler
        self._courier = courier
        self._messages_per_s = messages_per_s
        self._logger = logger
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._gate = threading.Lock()
        self._is_closed = False
        self._publish_s = 0.0
        self._deadlines_s = 0.0
        self._decoded_s = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the engine's thread."""
        self._thread.start()

    def require_room(self) -> None:
        """Raises ResourceExhausted when as many wait as may: what is refused here costs nothing but the asking."""
        self.scheduler.require_room()

    def submit(self, sequence: Sequence) -> None:
        """Lets a sequence run; its outbox gets all that becomes of it, a refusal too. Raises Unavailable at the end."""
        with self._gate:
            if self._is_closed:
                raise Unavailable(Reason.REASON_SHUTTING_DOWN, _CLOSED, retry_after_s=1.0)
            self._commands.put(partial(self._add, sequence))

    def cancel(self, sequence: Sequence) -> None:
        """Takes a sequence out at the next step's border; nothing happens if it is over."""
        self._commands.put(partial(self._cancel, sequence))

    def stop(self) -> None:
        """Ends what still runs with UNAVAILABLE and waits for the thread. For the end of a drained engine."""
        self._commands.put(self._close)
        if self._thread.is_alive():
            self._thread.join()

    def step(self) -> None:
        """One turn of the loop."""
        self._receive()
        for run in self.scheduler.runs():
            self._read(run)
        if self.scheduler.running:
            self._decode()
        self._publish()

    def _run(self) -> None:
        error: OctavoError = Unavailable(Reason.REASON_SHUTTING_DOWN, _CLOSED, retry_after_s=1.0)
        try:
            while not self._is_closed:
                self.step()
        except Exception as defect:
            self._logger.exception("the engine has failed")
            error = Internal(Reason.REASON_INTERNAL, f"the engine has failed: {type(defect).__name__}")
        # Nobody may wait forever for an engine that is gone.
        self._close()
        while not self._commands.empty():
            self._commands.get()()
        for sequence in list(self.scheduler):
            self._end(sequence, error)
        self._courier.depart()

    def _receive(self) -> None:
        if not self.scheduler.has_work:
            self._commands.get()()
            self._decoded_s = 0.0
        while not self._commands.empty():
            self._commands.get()()
        now_s = perf_counter()
        if now_s >= self._deadlines_s:
            self._deadlines_s = now_s + DEADLINE_INTERVAL_S
            for sequence in [s for s in self.scheduler if s.deadline_s and s.deadline_s <= now_s]:
                self._end(sequence, DeadlineExceeded(Reason.REASON_DEADLINE_EXCEEDED, _LATE))

    def _read(self, run: PromptRun) -> None:
        """Reads prompts, or a piece of one; those that are read have their first token, and decode on."""
        for copy in run.copies:
            self._session.copy(copy.source, copy.target, copy.length)
        now_s = perf_counter()
        for sequence in run.sequences:
            if sequence.read == sequence.reused:
                sequence.start_s = now_s
                self.meter.cached_tokens += sequence.reused
        found = self._prompt_logits(run)
        for sequence, _ in found:
            end = min(run.end, len(sequence.prompt))
            self.meter.prompt_tokens += end - sequence.read
            sequence.read = end
        if found and run.is_last:
            self._begin([sequence for sequence, _ in found], np.stack([logits for _, logits in found]))

    def _prompt_logits(self, run: PromptRun) -> list[tuple[Sequence, NDArray[np.float32]]]:
        """The logits [vocab] after what was read, for each sequence that did not fail."""
        if len(run.sequences) > 1:
            try:
                together = self._session.prefill_together(run.sequences[0].row, [one.prompt for one in run.sequences])
                return list(zip(run.sequences, together, strict=True))
            except Exception as error:  # the runtime raises its own classes
                self._logger.warning("%d prompts failed together, reading each alone: %s", len(run.sequences), error)
        found = []
        for sequence in run.sequences:
            try:
                tokens = sequence.prompt[run.start : min(run.end, len(sequence.prompt))]
                found.append((sequence, self._session.prefill(sequence.row, tokens, run.start)[0]))
            except Exception as error:  # this request alone is to blame
                self._end(sequence, self._defect(error))
        return found

    def _begin(self, sequences: list[Sequence], logits: NDArray[np.float32]) -> None:
        """Chooses the first token of sequences whose prompts are read, logits [n, vocab], and tells their readers."""
        for sequence in sequences:
            if move := self.scheduler.promote(sequence):
                self._session.copy(move.source, move.target, len(sequence.prompt))
            benders = sequence.benders(logits.shape[1])
            self._sampler.place(sequence.row, sequence.sampling, sequence.token_limit, benders)
        tokens = self._sampler.sample(logits, sequences[0].row).tolist()
        now_s = perf_counter()
        for sequence, token_id in zip(sequences, tokens, strict=True):
            sequence.first_token_s = now_s
            self._session.place(sequence.row, token_id, len(sequence.prompt))
        # From the last row on, as in decoding.
        for sequence, token_id, row in reversed(list(zip(sequences, tokens, logits, strict=True))):
            self._append(sequence, token_id, row)
            if not sequence.is_over and sequence.outbox.is_hungry and (news := sequence.news()):
                self._courier.hand(sequence.outbox, news)
        # The others of this step are still to decode: a first token does not wait for them.
        self._courier.depart()

    def _decode(self) -> None:
        running = self.scheduler.running
        count = len(running)
        logits: Logits
        try:
            logits = self._session.decode(count)
        except Exception as error:
            self._logger.warning("a decode step of %d rows failed, going row by row: %s", count, error)
            logits = self._decode_by_row()
        tokens = self._sampler.sample(logits)
        scored = {row: logits[row] for row in range(count) if running[row].logprobs is not None}
        self._session.advance(count, tokens)
        ids = tokens.tolist()
        now_s = perf_counter()
        self.meter.steps += 1
        if self._decoded_s:
            self.meter.inter_token_s.add(now_s - self._decoded_s, count)
        self._decoded_s = now_s
        # From the last row on: what ends together then leaves without its rows being moved about.
        for row in reversed(range(count)):
            self._append(running[row], ids[row], scored.get(row))

    def _decode_by_row(self) -> NDArray[np.float32]:
        """What `decode` would have given, NaN for those rows that fail alone too. Repeating a row changes nothing."""
        rows = []
        for sequence in self.scheduler.running:
            try:
                rows.append(self._session.decode_row(sequence.row).copy())
            except Exception as error:
                self._defect(error)
                rows.append(np.full((1, self._session.vocab_size), np.nan, np.float32))
        return np.concatenate(rows)

    def _append(self, sequence: Sequence, token_id: int, logits: NDArray[np.float32] | None) -> None:
        """Adds a token, whose `logits` [vocab] are there where it is to be scored."""
        if token_id < 0 or sequence.failure:
            self._end(sequence, sequence.failure or DataLoss(Reason.REASON_INTERNAL, _NOT_A_NUMBER))
            return
        self.meter.completion_tokens += 1
        if sequence.logprobs is not None and logits is not None:
            sequence.scores += token_scores(logits[None], np.array([token_id]), sequence.logprobs)
        if sequence.append(token_id):
            self._end(sequence, None)

    def _publish(self) -> None:
        """Hands news to the readers that wait for some, not more often than `messages_per_s` allows in all."""
        now_s = perf_counter()
        if now_s >= self._publish_s:
            sent = 0
            for sequence in self.scheduler.running:
                if sequence.outbox.is_hungry and (news := sequence.news()):
                    self._courier.hand(sequence.outbox, news)
                    sent += 1
            self._publish_s = now_s + sent / self._messages_per_s
        self._courier.depart()

    def _add(self, sequence: Sequence) -> None:
        try:
            self.scheduler.add(sequence)
        except OctavoError as error:
            self._end(sequence, error)

    def _cancel(self, sequence: Sequence) -> None:
        if not sequence.is_over:
            self._end(sequence, Cancelled(Reason.REASON_CANCELLED, "the caller went away"))

    def _end(self, sequence: Sequence, error: OctavoError | None) -> None:
        """Takes a sequence out and sends its last news."""
        if move := self.scheduler.remove(sequence, perf_counter()):
            self._move(move)
        delivery = sequence.last_news(error)
        if delivery.ending:
            self.meter.count_end(delivery.ending)
        self._courier.hand(sequence.outbox, delivery)

    def _move(self, move: Move) -> None:
        self._session.move(move.source, move.target, move.keeps)
        self._sampler.move(move.source, move.target)

    def _close(self) -> None:
        with self._gate:
            self._is_closed = True

    def _defect(self, error: Exception) -> OctavoError:
        self._logger.error("a run of the graph failed", exc_info=error)
        return Internal(Reason.REASON_INTERNAL, f"the model could not be run: {error}")


_CLOSED = "this engine takes nothing more; another attempt finds its successor"
_LATE = "the deadline passed before the completion was finished; allow more time or fewer max_tokens"
_NOT_A_NUMBER = "the model's logits are not numbers; its weights or the run are broken"
