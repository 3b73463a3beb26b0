"""The graph that answers at every position, for scores and embeddings: opened when it is first asked for.

Weights and a cache of one row of its own, so that it never touches the engine's. One text at a time, in chunks whose
borders depend on the text's length alone.
"""

from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import SCORE_GRAPH_FILE
from octavo.v1.errors_pb2 import Reason
from services.inference.kv_cache import KvCache
from services.inference.session import PROVIDERS, bind, bind_output, session_options

Floats = NDArray[np.float32]


class ScoreSession:
    """Reads texts of up to `capacity` tokens. Safe to share between threads: it works for one at a time."""

    def __init__(
        self, directory: Path, architecture: Architecture, *, capacity: int, chunk_tokens: int, threads: int
    ) -> None:
        self._path = directory / SCORE_GRAPH_FILE
        self._architecture = architecture
        self._capacity = capacity
        self._chunk_tokens = chunk_tokens
        self._threads = threads
        self._lock = Lock()
        self._session: ort.InferenceSession | None = None
        self._cache: KvCache | None = None

    def read(self, token_ids: NDArray[np.int64]) -> Iterator[tuple[int, Floats, Floats]]:
        """Per chunk: its first position, logits [n, vocab] after each of its tokens, hidden states [n, width].

        Raises FailedPrecondition where the version has no such graph. Holds the session until it is exhausted or
        closed.
        """
        with self._lock:
            session, cache = self._opened()
            for start in range(0, len(token_ids), self._chunk_tokens):
                chunk = token_ids[start : start + self._chunk_tokens]
                yield start, *self._run(session, cache, chunk, start)

    def _opened(self) -> tuple[ort.InferenceSession, KvCache]:
        if self._session is None or self._cache is None:
            if not self._path.is_file():
                raise FailedPrecondition(
                    Reason.REASON_MODEL_REFUSED,
                    f"this version has no {SCORE_GRAPH_FILE}, so it can neither score nor embed; export it again",
                )
            options = session_options(self._threads, allow_spinning=False)
            self._session = ort.InferenceSession(str(self._path), options, providers=list(PROVIDERS))
            self._cache = KvCache(self._architecture, slots=1, capacity=self._capacity)
        return self._session, self._cache

    def _run(
        self, session: ort.InferenceSession, cache: KvCache, chunk: NDArray[np.int64], start: int
    ) -> tuple[Floats, Floats]:
        count, end = len(chunk), start + len(chunk)
        token_ids = np.ascontiguousarray(chunk).reshape(1, count)
        positions = np.arange(start, end, dtype=np.int64).reshape(1, count)
        length, total = np.array([end - 1], np.int32), np.array(end, np.int32)
        logits = np.empty((1, count, self._architecture.vocab_size), np.float32)
        hidden = np.empty((1, count, self._architecture.width), np.float32)
        binding = session.io_binding()
        bind(binding, "input_ids", token_ids)
        if not self._architecture.has_rope:
            bind(binding, "position_ids", positions)
        bind(binding, "seqlens_k", length)
        bind(binding, "total_sequence_length", total)
        bind_output(binding, "logits", logits)
        bind_output(binding, "hidden", hidden)
        for name, tensor in cache.tensors.items():
            bind(binding, f"past_{name}", tensor)
            bind_output(binding, f"present_{name}", tensor)
        session.run_with_iobinding(binding)
        return logits[0], hidden[0]
