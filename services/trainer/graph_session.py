"""Runs an exported graph on the CPU exactly as its contract says, with an in-place cache: for proofs, not for speed.

Knows nothing of what is being proven, nor of requests; the inference engine has a session of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from octavo.formats.architecture import Architecture


class GraphSession:
    """One graph over one or several sequences of up to a context each; used by one thread at a time."""

    def __init__(self, path: Path, architecture: Architecture, *, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Spinning threads would take the cores of the training beside which a proof may run.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = {value.name for value in self._session.get_inputs()}
        self._a = architecture
        self.reset(rows=1)

    def reset(self, *, rows: int) -> None:
        """Start over with so many empty sequences."""
        shape = (rows, self._a.kv_heads, self._a.context_length, self._a.head_size)
        self._past = np.zeros(rows, np.int64)
        self._caches = {
            f"{part}.{layer}": np.zeros(shape, np.float32)
            for layer in range(self._a.layers)
            for part in ("key", "value")
        }

    def complete(
        self, prompt: npt.NDArray[np.int64], count: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Continue one sequence greedily: ids [count] and the logits [count, vocab] each was chosen from."""
        self.reset(rows=1)
        rows = [self.feed(prompt[None, :])[0]]
        while len(rows) < count:
            rows.append(self.feed(np.array([[rows[-1].argmax()]], np.int64))[0])
        logits = np.stack(rows)
        return logits.argmax(axis=1), logits

    def feed(self, ids: npt.NDArray[np.int64], counts: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float32]:
        """Append `ids` [rows, n], of which each row means its first `counts` (default: all); return the logits.

        [rows, vocab] after the last token of each row, or [rows, n, vocab] from a scoring graph.
        """
        rows, width = ids.shape
        counts = np.full(rows, width, np.int64) if counts is None else counts
        total = self._past + counts
        # The kernel takes a run for a first prompt iff this equals n, so a padded first prompt says n.
        longest = width if not self._past.any() else int(total.max())
        feeds: dict[str, npt.NDArray[Any]] = {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            "position_ids": self._past[:, None] + np.arange(width, dtype=np.int64)[None, :],
            "seqlens_k": (total - 1).astype(np.int32),
            "total_sequence_length": np.array(longest, np.int32),
            "last_token": counts - 1,
        }
        logits = self._run({name: array for name, array in feeds.items() if name in self._names})
        self._past = total
        return logits

    def _run(self, feeds: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        binding = self._session.io_binding()
        binding.bind_output("logits", "cpu")
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, cache in self._caches.items():
            # The same address in and out is what makes the kernel append in place.
            address = cache.ctypes.data
            binding.bind_input(f"past_{name}", "cpu", 0, np.float32, cache.shape, address)
            binding.bind_output(f"present_{name}", "cpu", 0, np.float32, cache.shape, address)
        if "last_token" not in self._names:
            binding.bind_output("hidden", "cpu")
        self._session.run_with_iobinding(binding)
        # numpy() of a bound output may alias memory of the runtime.
        logits: npt.NDArray[np.float32] = binding.get_outputs()[0].numpy().copy()
        return logits
