"""The served graph, asked for an answer after every token: for scores and embeddings.

The engine's weights, with a cache and a thread of its own: it never touches the engine's, and does one run at a time.
Short texts are read together, right-padded to one length; long ones in chunks. A text gets the same bits in every
company, and those that it would get as a prompt.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from octavo.formats.architecture import Architecture
from services.inference.kv_cache import cut
from services.inference.served_graph import ServedGraph, bind, bind_output
from services.inference.session import padded_width

PADDING = 8
"""Texts are padded to a multiple of so many tokens."""

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the graph says after the tokens from `start` on of text number `text`: logits [n, vocab], hidden [n, width].

    Both are overwritten by the next run.
    """

    text: int
    start: int
    logits: Floats
    hidden: Floats


class ScoreSession:
    """Reads texts of up to `capacity` tokens. `work` is for the event loop, `read` for the tasks that it runs.

    The reader is opened when there is a first text.
    """

    def __init__(self, open_reader: "Callable[..., RunReader]", *, capacity: int, chunk_tokens: int) -> None:
        self._open_reader = open_reader
        self._capacity = capacity
        self._chunk_tokens = chunk_tokens
        self._desk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="score")
        self._workspace: Workspace | None = None

    @staticmethod
    def size_bytes(architecture: Architecture, *, row_bytes: int, chunk_tokens: int) -> int:
        """Memory that scoring takes from its first use on, with a cache of `row_bytes`."""
        return row_bytes + 4 * chunk_tokens * (architecture.vocab_size + architecture.width)

    async def work(self, task: Callable[[Event], Answer]) -> Answer:
        """What a task returns, run beside the event loop when those asked for before are done.

        The event is set when nobody waits for the task any more: it should return soon, whatever it returns.
        """
        left = Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._desk, task, left)
        finally:
            left.set()

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which texts, given by their lengths, are read together: as numbers, each in one group."""
        open_groups: dict[int, list[int]] = {}
        groups = []
        for number, length in enumerate(lengths):
            size = self._padded(length)
            group = open_groups.get(size)
            if group is None or (len(group) + 1) * size > self._chunk_tokens:
                group = open_groups[size] = []
                groups.append(group)
            group.append(number)
        return groups

    def read(self, texts: Sequence[Tokens], firsts: Sequence[int], left: Event) -> Iterator[Reading]:
        """Reads the texts of one group, none empty; answers after each token from the position `firsts` on.

        Ends early once `left` is set.
        """
        if self._workspace is None:
            reader = self._open_reader(capacity=padded_width(max(self._capacity, self._chunk_tokens)))
            self._workspace = Workspace(reader, run_tokens=self._chunk_tokens)
        padded = self._padded(len(texts[0]))
        is_whole = padded <= self._chunk_tokens
        for start in range(0, padded, self._chunk_tokens):
            if left.is_set():
                return
            chunks = [text[start : start + self._chunk_tokens] for text in texts]
            skipped = [min(max(first - start, 0), len(chunk)) for first, chunk in zip(firsts, chunks, strict=True)]
            logits, hidden = self._workspace.read(chunks, skipped, start, padded if is_whole else 0)
            row = 0
            for number, (chunk, skip) in enumerate(zip(chunks, skipped, strict=True)):
                rows = slice(row, row + len(chunk) - skip)
                yield Reading(number, start + skip, logits[rows], hidden[rows])
                row = rows.stop

    def _padded(self, length: int) -> int:
        """What a text is padded to; its own length where it takes several runs."""
        if length > self._chunk_tokens:
            return length
        return min(-(-length // PADDING) * PADDING, self._chunk_tokens, padded_width(self._capacity))


@dataclass(frozen=True, slots=True)
class TextRun:
    """One run: `token_ids` int64 [rows, width] at the positions `start`...; `lengths` int32 [rows], of each row's text
    so far less one; `answered` int64 [n, 2], row and index of each token to answer after.

    Whole texts are `padded` to one length, and share the memory of the cache; 0 is one chunk of a longer text.
    """

    token_ids: Tokens
    start: int
    lengths: NDArray[np.int32]
    answered: NDArray[np.int64]
    padded: int


class RunReader(Protocol):
    """A graph with a cache for texts, wherever it computes."""

    architecture: Architecture

    def read(self, run: TextRun, logits: Floats, hidden: Floats) -> None:
        """Computes the answers of a run: logits [n, vocab] and hidden states [n, width], into arrays of the caller."""


class TextReader:
    """A graph and a cache of one row of `capacity` tokens."""

    def __init__(self, graph: ServedGraph, *, capacity: int) -> None:
        self.architecture = graph.architecture
        self._graph = graph
        self._last_position = graph.architecture.context_length - 1
        self._cache = graph.new_cache(slots=1, capacity=capacity)

    def read(self, run: TextRun, logits: Floats, hidden: Floats) -> None:
        """Computes the answers of a run into `logits` and `hidden`."""
        rows, width = run.token_ids.shape
        end = run.start + width
        positions = np.tile(np.minimum(np.arange(run.start, end), self._last_position), (rows, 1))
        total = np.array(end, np.int32)
        binding = self._graph.binding()
        bind(binding, "input_ids", run.token_ids)
        if self._graph.has_positions:
            bind(binding, "position_ids", positions)
        bind(binding, "seqlens_k", run.lengths)
        bind(binding, "total_sequence_length", total)
        bind(binding, "answered", run.answered)
        bind_output(binding, "logits", logits)
        bind_output(binding, "hidden", hidden)
        for name, tensor in self._cache.tensors.items():
            memory = cut(tensor, rows, run.padded) if run.padded else tensor
            bind(binding, f"past_{name}", memory)
            bind_output(binding, f"present_{name}", memory)
        self._graph.run(binding)


class Workspace:
    """A reader, and memory for the answers of a run of `run_tokens`."""

    def __init__(self, reader: RunReader, *, run_tokens: int) -> None:
        self._reader = reader
        self._logits = np.empty((run_tokens, reader.architecture.vocab_size), np.float32)
        self._hidden = np.empty((run_tokens, reader.architecture.width), np.float32)

    def read(self, chunks: Sequence[Tokens], skipped: Sequence[int], start: int, padded: int) -> tuple[Floats, Floats]:
        """One run over `chunks` at positions `start`...; logits [n, vocab] and hidden states [n, width], one chunk's
        after the other's, each without its first `skipped`. `padded` as in TextRun.
        """
        width = padded or padded_width(len(chunks[0]))
        token_ids = np.zeros((len(chunks), width), np.int64)
        for line, chunk in zip(token_ids, chunks, strict=True):
            line[: len(chunk)] = chunk
        # With a past, padding counts as text; without one, what counts is each text's own length.
        lengths = np.array([start + width - 1 if start else len(chunk) - 1 for chunk in chunks], np.int32)
        pairs = [(row, at) for row, chunk in enumerate(chunks) for at in range(skipped[row], len(chunk))]
        answered = np.array(pairs or [(0, 0)], np.int64)  # a run has at least one answer, wanted or not
        logits, hidden = self._logits[: len(answered)], self._hidden[: len(answered)]
        self._reader.read(TextRun(token_ids, start, lengths, answered, padded), logits, hidden)
        return logits[: len(pairs)], hidden[: len(pairs)]
