"""The served graph, asked for an answer after every token: for scores and embeddings.

The engine's weights and a cache of one row of its own, so that it never touches the engine's. One text at a time, in
chunks whose borders depend on the text's length alone.
"""

from collections.abc import Iterator
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from services.inference.kv_cache import KvCache
from services.inference.served_graph import ServedGraph, bind, bind_cache, bind_output

Floats = NDArray[np.float32]


class ScoreSession:
    """Reads texts of up to `capacity` tokens. Safe to share between threads: it works for one at a time."""

    def __init__(self, graph: ServedGraph, *, capacity: int, chunk_tokens: int) -> None:
        self._graph = graph
        self._capacity = capacity
        self._chunk_tokens = chunk_tokens
        self._lock = Lock()
        self._cache: KvCache | None = None

    def read(self, token_ids: NDArray[np.int64]) -> Iterator[tuple[int, Floats, Floats]]:
        """Per chunk: its first position, logits [n, vocab] after each of its tokens, hidden states [n, width].

        Holds the session until it is exhausted or closed.
        """
        with self._lock:
            if self._cache is None:
                self._cache = self._graph.new_cache(slots=1, capacity=self._capacity)
            for start in range(0, len(token_ids), self._chunk_tokens):
                chunk = token_ids[start : start + self._chunk_tokens]
                yield start, *self._run(self._cache, chunk, start)

    def _run(self, cache: KvCache, chunk: NDArray[np.int64], start: int) -> tuple[Floats, Floats]:
        count, end = len(chunk), start + len(chunk)
        token_ids = np.ascontiguousarray(chunk).reshape(1, count)
        positions = np.arange(start, end, dtype=np.int64).reshape(1, count)
        length, total = np.array([end - 1], np.int32), np.array(end, np.int32)
        answered = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
        logits = np.empty((count, self._graph.architecture.vocab_size), np.float32)
        hidden = np.empty((count, self._graph.architecture.width), np.float32)
        binding = self._graph.binding()
        bind(binding, "input_ids", token_ids)
        if self._graph.has_positions:
            bind(binding, "position_ids", positions)
        bind(binding, "seqlens_k", length)
        bind(binding, "total_sequence_length", total)
        bind(binding, "answered", answered)
        bind_output(binding, "logits", logits)
        bind_output(binding, "hidden", hidden)
        bind_cache(binding, cache, slice(0, 1))
        self._graph.run(binding)
        return logits, hidden
