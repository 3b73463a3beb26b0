"""A version's graph in ONNX Runtime: opened once, its weights shared by the engine and by scoring.

Knows the graph's contract, which the exporter states; nothing of rows, requests or text. May be run from several
threads at the same time, each with a binding and a cache of its own.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.v1.errors_pb2 import Reason
from services.inference.kv_cache import KvCache

PROVIDERS = ("CPUExecutionProvider",)

_CACHE_TYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
}


class ServedGraph:
    """An open graph. Raises FailedPrecondition where it is not one that this server can run."""

    def __init__(self, path: Path, architecture: Architecture, *, threads: int, spin_us: int) -> None:
        self.architecture = architecture
        try:
            self._session = ort.InferenceSession(
                str(path), session_options(threads, spin_us=spin_us), providers=list(PROVIDERS)
            )
        except Exception as error:  # the runtime raises its own classes
            raise FailedPrecondition(
                Reason.REASON_MODEL_REFUSED, f"ONNX Runtime cannot load {path.name}: {error}"
            ) from error
        inputs = {entry.name: entry.type for entry in self._session.get_inputs()}
        check_contract(inputs.keys(), {entry.name for entry in self._session.get_outputs()}, architecture)
        self.has_positions = "position_ids" in inputs
        self._cache_type = _cache_type(inputs)

    def new_cache(self, *, slots: int, capacity: int) -> KvCache:
        """An empty cache of the graph's own element type."""
        return KvCache(self.architecture, slots=slots, capacity=capacity, element_type=self._cache_type)

    def row_size_bytes(self, capacity: int) -> int:
        """Memory of one row of such a cache, in bytes."""
        element_bytes = np.dtype(self._cache_type).itemsize
        return capacity * self.architecture.kv_cache_bytes_per_token(element_bytes=element_bytes)

    def binding(self) -> ort.IOBinding:
        """An empty set of inputs and outputs."""
        return self._session.io_binding()

    def run(self, binding: ort.IOBinding) -> None:
        """Computes the bound outputs from the bound inputs. Raises the runtime's own classes."""
        self._session.run_with_iobinding(binding)


def session_options(threads: int, *, spin_us: int) -> ort.SessionOptions:
    """How our sessions are set up."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # a plan for each shape: prompts have too many
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    if spin_us:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    return options


def bind(binding: ort.IOBinding, name: str, array: NDArray[np.generic]) -> None:
    """Makes an array an input by its address: it must live as long as the binding is run."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(binding: ort.IOBinding, name: str, array: NDArray[Any]) -> None:
    """Makes an array what an output is written into."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_cache(binding: ort.IOBinding, cache: KvCache, rows: slice) -> None:
    """Past and present are one memory: the kernel then writes in place instead of copying the whole cache."""
    for name, tensor in cache.tensors.items():
        bind(binding, f"past_{name}", tensor[rows])
        bind_output(binding, f"present_{name}", tensor[rows])


def _cache_type(inputs: Mapping[str, str]) -> type[np.generic]:
    found = {kind for name, kind in inputs.items() if name.startswith("past_")}
    known = [_CACHE_TYPES[kind] for kind in found if kind in _CACHE_TYPES]
    if len(found) != 1 or not known:
        raise refusal(f"its cache holds {', '.join(sorted(found))}; one of {', '.join(_CACHE_TYPES)} can be run")
    return known[0]


def check_contract(inputs: Iterable[str], outputs: set[str], architecture: Architecture) -> None:
    """A graph of another contract would fail at the first request: say so before. Raises FailedPrecondition."""
    caches = [f"{kind}.{layer}" for layer in range(architecture.layers) for kind in ("key", "value")]
    expected = {"input_ids", "seqlens_k", "total_sequence_length", "answered", *(f"past_{name}" for name in caches)}
    differences = _difference("inputs", set(inputs) - {"position_ids"}, expected)
    outputs = {name for name in outputs if not name.startswith(("key_codes.", "value_codes."))}
    differences += _difference("outputs", outputs, {"logits", "hidden", *(f"present_{name}" for name in caches)})
    if differences:
        raise refusal("; ".join(differences))


def _difference(kind: str, present: set[str], expected: set[str]) -> list[str]:
    missing, unknown = sorted(expected - present), sorted(present - expected)
    return [
        *([f"{kind} {', '.join(missing[:4])} are missing"] if missing else []),
        *([f"{kind} {', '.join(unknown[:4])} are unknown"] if unknown else []),
    ]


def refusal(text: str) -> FailedPrecondition:
    """Says that a graph cannot be run, why, and what helps."""
    return FailedPrecondition(
        Reason.REASON_CONFORMANCE_FAILED,
        f"the graph is not one that this server can run: {text}; export the version again",
    )
