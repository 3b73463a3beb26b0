"""One ONNX Runtime session over one KV cache: a chunk of one prompt, or one token of many sequences.

Knows rows and lengths; knows nothing of requests, text or sampling. Everything is bound once by address: a step
writes into the same arrays, and nothing is allocated or copied on the way.
"""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from octavo.errors import FailedPrecondition
from octavo.v1.errors_pb2 import Reason
from services.inference.kv_cache import KvCache

PROVIDERS = ("CPUExecutionProvider",)


class Session:
    """The served graph. Used by one thread at a time.

    `token_ids` int64 [slots, 1], `positions` int64 [slots, 1] and `lengths` int32 [slots] are the inputs of the next
    decode step, row by row: the token to read, its position, and the number of positions before it (the same number).
    """

    def __init__(self, path: Path, cache: KvCache, *, vocab_size: int, threads: int, allow_spinning: bool) -> None:
        self.cache = cache
        self.vocab_size = vocab_size
        self._session = ort.InferenceSession(
            str(path), session_options(threads, allow_spinning=allow_spinning), providers=list(PROVIDERS)
        )
        names = {entry.name for entry in self._session.get_inputs()}
        _check_contract(names, {entry.name for entry in self._session.get_outputs()}, cache)
        self._has_positions = "position_ids" in names
        slots = cache.slots
        self.token_ids = np.zeros((slots, 1), np.int64)
        self.positions = np.zeros((slots, 1), np.int64)
        self.lengths = np.zeros(slots, np.int32)
        self._total = np.zeros((), np.int32)
        self._last_of_one = np.zeros(slots, np.int64)
        self._logits = np.zeros((slots, vocab_size), np.float32)
        self._decode_bindings: list[ort.IOBinding | None] = [None] * (slots + 1)
        self._prefill_bindings: dict[int, ort.IOBinding] = {}
        self._prefill_logits = np.zeros((1, vocab_size), np.float32)
        self._prefill_length = np.zeros(1, np.int32)
        self._prefill_last = np.zeros(1, np.int64)

    def prefill(self, row: int, token_ids: NDArray[np.int64], start: int) -> NDArray[np.float32]:
        """Reads `token_ids` [n] at positions `start`... of `row`; the logits [1, vocab] after the last of them.

        The array that comes back is overwritten by the next prefill.
        """
        binding = self._prefill_bindings.get(row) or self._bind_prefill(row)
        count = len(token_ids)
        ids = np.ascontiguousarray(token_ids).reshape(1, count)
        positions = np.arange(start, start + count, dtype=np.int64).reshape(1, count)
        bind(binding, "input_ids", ids)
        if self._has_positions:
            bind(binding, "position_ids", positions)
        self._prefill_length[0] = start + count - 1
        self._prefill_last[0] = count - 1
        # The kernel takes a run for a first prompt exactly when this equals the chunk's length, that is at start 0.
        self._total[...] = start + count
        self._session.run_with_iobinding(binding)
        return self._prefill_logits

    def decode(self, count: int, longest: int) -> NDArray[np.float32]:
        """Reads one token in each of the rows 0 to `count`; their logits [count, vocab].

        `longest` is the greatest of their `lengths`, at least 1. The array is overwritten by the next step.
        """
        binding = self._decode_bindings[count] or self._bind_decode(count)
        self._total[...] = longest + 1
        self._session.run_with_iobinding(binding)
        return self._logits[:count]

    def decode_row(self, row: int) -> NDArray[np.float32]:
        """Reads one token in `row` alone: bit for bit what `decode` computes for it; the logits [1, vocab]."""
        return self._bind_and_decode(slice(row, row + 1), int(self.lengths[row]))

    def advance(self, count: int, token_ids: NDArray[np.int64]) -> None:
        """Makes `token_ids` [count] the tokens that the rows 0 to `count` read next, one position further."""
        self.token_ids[:count, 0] = token_ids
        self.positions[:count] += 1
        self.lengths[:count] += 1

    def place(self, row: int, token_id: int, length: int) -> None:
        """Makes `token_id` the token that `row` reads next, after `length` positions."""
        self.token_ids[row, 0] = token_id
        self.positions[row, 0] = length
        self.lengths[row] = length

    def move(self, source: int, target: int) -> None:
        """Makes row `target` what row `source` is."""
        length = int(self.lengths[source])
        self.cache.move(source, target, length)
        self.place(target, int(self.token_ids[source, 0]), length)

    def _bind_and_decode(self, rows: slice, longest: int) -> NDArray[np.float32]:
        self._total[...] = longest + 1
        self._session.run_with_iobinding(self._bound(rows))
        return self._logits[rows]

    def _bind_decode(self, count: int) -> ort.IOBinding:
        binding = self._bound(slice(0, count))
        self._decode_bindings[count] = binding
        return binding

    def _bound(self, rows: slice) -> ort.IOBinding:
        binding = self._session.io_binding()
        bind(binding, "input_ids", self.token_ids[rows])
        if self._has_positions:
            bind(binding, "position_ids", self.positions[rows])
        bind(binding, "seqlens_k", self.lengths[rows])
        bind(binding, "total_sequence_length", self._total)
        bind(binding, "last_token", self._last_of_one[rows])
        bind_output(binding, "logits", self._logits[rows])
        self._bind_cache(binding, rows)
        return binding

    def _bind_prefill(self, row: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        bind(binding, "seqlens_k", self._prefill_length)
        bind(binding, "total_sequence_length", self._total)
        bind(binding, "last_token", self._prefill_last)
        bind_output(binding, "logits", self._prefill_logits)
        self._bind_cache(binding, slice(row, row + 1))
        self._prefill_bindings[row] = binding
        return binding

    def _bind_cache(self, binding: ort.IOBinding, rows: slice) -> None:
        """Past and present are one memory: the kernel then writes in place instead of copying the whole cache."""
        for name, tensor in self.cache.tensors.items():
            bind(binding, f"past_{name}", tensor[rows])
            bind_output(binding, f"present_{name}", tensor[rows])


def session_options(threads: int, *, allow_spinning: bool) -> ort.SessionOptions:
    """How our sessions are set up."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # a plan for each shape: prompts have too many
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if allow_spinning else "0")
    return options


def bind(binding: ort.IOBinding, name: str, array: NDArray[np.generic]) -> None:
    """Makes an array an input by its address: it must live as long as the binding is run."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(binding: ort.IOBinding, name: str, array: NDArray[np.float32]) -> None:
    """Makes an array what an output is written into."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _check_contract(inputs: set[str], outputs: set[str], cache: KvCache) -> None:
    """A graph of another contract would fail at the first request: say so before. Raises FailedPrecondition."""
    expected = {"input_ids", "seqlens_k", "total_sequence_length", "last_token"}
    expected |= {f"past_{name}" for name in cache.tensors}
    differences = _difference("inputs", inputs - {"position_ids"}, expected)
    differences += _difference("outputs", outputs, {"logits", *(f"present_{name}" for name in cache.tensors)})
    if differences:
        raise FailedPrecondition(
            Reason.REASON_CONFORMANCE_FAILED,
            f"the graph is not one that this server can run: {'; '.join(differences)}; export the version again",
        )


def _difference(kind: str, present: set[str], expected: set[str]) -> list[str]:
    missing, unknown = sorted(expected - present), sorted(present - expected)
    return [
        *([f"{kind} {', '.join(missing[:4])} are missing"] if missing else []),
        *([f"{kind} {', '.join(unknown[:4])} are unknown"] if unknown else []),
    ]
