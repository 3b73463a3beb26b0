"""Runs an exported graph on the CPU exactly as its contract says, with an in-place cache: for proofs, not for speed.

Knows nothing of what is being proven, nor of requests; the inference engine has a session of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.v1.errors_pb2 import Reason

_CACHE_TYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


Feeds = dict[str, npt.NDArray[Any]]

__all__ = ["GraphSession", "NoKernel", "open_graph"]


_UNFIT: Final = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile)


class GraphSession:
    """One graph over one or several sequences of up to a context each; used by one thread at a time.

    `caches` are the keys and values by layer, [rows, kv_heads, context, head_size], such as `key.0`. Where a graph
    beside it reads its prompts, that one does it here too.
    """

    def __init__(self, path: Path, architecture: Architecture, *, threads: int = 1) -> None:
        self._session = open_graph(path, threads=threads)
        prompts = path.with_suffix(".prompt.onnx")
        self._reading = open_graph(prompts, threads=threads) if prompts.is_file() else None
        inputs = {value.name: value.type for value in self._session.get_inputs()}
        self._names = inputs.keys()
        if "answered" not in self._names:
            raise _unfit(path.name, "it has no input `answered`; another Octavo made it: train or export again")
        self._cache_types = {
            name.removeprefix("past_"): _CACHE_TYPES[kind] for name, kind in inputs.items() if name.startswith("past_")
        }
        self._a = architecture
        self.reset(rows=1)

    def reset(self, *, rows: int) -> None:
        """Start over with so many empty sequences."""
        shape = (rows, self._a.kv_heads, self._a.context_length, self._a.head_size)
        self._past = np.zeros(rows, np.int64)
        self.caches = {name: np.zeros(shape, dtype) for name, dtype in self._cache_types.items()}

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
        """Append `ids` [rows, n], of which each row means its first `counts` (default: all).

        The logits [rows, vocab] after the last token of each row.
        """
        rows, width = ids.shape
        counts = np.full(rows, width, np.int64) if counts is None else counts
        return self._run(ids, counts, np.stack([np.arange(rows), counts - 1], axis=1))

    def feed_all(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Append `ids` [rows, n]; the logits [rows, n, vocab] after every token."""
        rows, width = ids.shape
        every = np.indices((rows, width)).reshape(2, -1).T
        return self._run(ids, np.full(rows, width, np.int64), every).reshape(rows, width, -1)

    def _run(
        self, ids: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], answered: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        total = self._past + counts
        width = ids.shape[1]
        # The kernel takes a run for a first prompt iff this equals n, so a padded first prompt says n.
        longest = width if not self._past.any() else int(total.max())
        feeds: Feeds = {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            "position_ids": self._past[:, None] + np.arange(width, dtype=np.int64)[None, :],
            "seqlens_k": (total - 1).astype(np.int32),
            "total_sequence_length": np.array(longest, np.int32),
            "answered": np.ascontiguousarray(answered, np.int64),
        }
        reads = self._reading is not None and not self._past.any() and width > 1
        logits = self._read(feeds) if reads else self._append(feeds)
        self._past = total
        return logits

    def _append(self, feeds: Feeds) -> npt.NDArray[np.float32]:
        binding = self._session.io_binding()
        binding.bind_output("logits", "cpu")
        _bind(binding, {name: array for name, array in feeds.items() if name in self._names}, self.caches)
        self._session.run_with_iobinding(binding)
        # numpy() of a bound output may alias memory of the runtime.
        logits: npt.NDArray[np.float32] = binding.get_outputs()[0].numpy().copy()
        return logits

    def _read(self, feeds: Feeds) -> npt.NDArray[np.float32]:
        """First prompts through the graph that reads them; its codes are the caches."""
        rows, width = feeds["input_ids"].shape
        shape = (rows, self._a.kv_heads, width, self._a.head_size)
        floats = {name: np.zeros(shape, np.float32) for name in self.caches}
        codes = {name: "{}_codes.{}".format(*name.split(".")) for name in self.caches}
        if self._reading is None:
            raise AssertionError("there is no graph that reads prompts")
        binding = self._reading.io_binding()
        for name in ("logits", *codes.values()):
            binding.bind_output(name, "cpu")
        _bind(binding, feeds, floats)
        self._reading.run_with_iobinding(binding)
        logits, *found = (output.numpy().copy() for output in binding.get_outputs()[: 1 + len(codes)])
        for name, tensor in zip(codes, found, strict=True):
            heads = tensor.reshape(rows, width, self._a.kv_heads, self._a.head_size)
            self.caches[name][:, :, :width] = heads.transpose(0, 2, 1, 3)
        answers: npt.NDArray[np.float32] = logits
        return answers


def _bind(binding: ort.IOBinding, feeds: Feeds, caches: Feeds) -> None:
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    for name, cache in caches.items():
        # The same address in and out is what makes the kernel append in place.
        address = cache.ctypes.data
        binding.bind_input(f"past_{name}", "cpu", 0, cache.dtype.type, cache.shape, address)
        binding.bind_output(f"present_{name}", "cpu", 0, cache.dtype.type, cache.shape, address)


def open_graph(graph: Path | bytes, *, threads: int, folder: Path | None = None) -> ort.InferenceSession:
    """A session on the CPU, for a file or for a graph in memory whose tensors lie in `folder`.

    NoKernel where the CPU has none for an operation in the type of the graph; FailedPrecondition for what is no graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Spinning threads would take the cores of the training beside which a proof may run.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _UNFIT as error:
        raise _unfit(graph.name if isinstance(graph, Path) else "the graph", str(error)[:500]) from error


def _unfit(name: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(Reason.REASON_FORMAT_NOT_SUPPORTED, f"{name} cannot be run: {why}")
