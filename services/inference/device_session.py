"""A served graph over a KV cache in a device's memory: what Session is, with nothing crossing to the host unasked.

Decoding runs in batches of a few sizes, each captured once and replayed from then on. The rows between the last
sequence and the end of such a batch read a token too, and append it behind whatever they hold: where the next token
of that row goes if it ever gets one, so that nobody reads it. No row may therefore be filled to its last position;
none is, since the last token of a text is never fed.
"""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from services.inference.device_array import DeviceArray, DeviceCopier
from services.inference.device_cache import DeviceCache
from services.inference.device_graph import DeviceGraph
from services.inference.replayer import EAGER
from services.inference.session import padded_width

Floats = NDArray[np.float32]


class DeviceLogits:
    """Logits [count, vocab] of the rows from 0 on, in the device's memory; a row is fetched when it is asked for.

    They are overwritten by the next run of the session.
    """

    def __init__(self, session: "DeviceSession", count: int) -> None:
        self.session = session
        self.shape = (count, session.vocab_size)
        self._run = session.runs

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> Floats:
        """The logits [vocab] of one row."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        if self._run != self.session.runs:
            raise RuntimeError("these logits have been overwritten by another run")
        return self.session.fetch(row)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> Floats:
        del dtype, copy
        return np.stack([self[row] for row in range(len(self))])


class DeviceSession:
    """The engine's way to a graph on a device. Used by one thread at a time, and that one always the same: what the
    runtime has captured belongs to the thread.

    `token_ids`, `positions` and `lengths` as Session's: int64 [slots, 1] twice and int32 [slots], the host's word on
    the next decode step. The device has its own copies, which a chooser on the device may step itself: `arrays`.

    With `is_invariant` every step decodes all slots and prompts are read one by one, so that the shapes of a
    sequence's runs, and with them its kernels, never depend on its company. With `ahead` the next step is begun as
    soon as its tokens are known, while the host attends to the last one; it is repeated where rows have come, gone
    or moved since. Without `replays` everything runs eagerly, as a measure of what they give.
    """

    def __init__(
        self,
        graph: DeviceGraph,
        cache: DeviceCache,
        *,
        is_invariant: bool = False,
        ahead: bool = False,
        replays: bool = True,
    ) -> None:
        self.cache = cache
        self.vocab_size = graph.architecture.vocab_size
        self.arrays = StepArrays(graph, cache.slots)
        slots = cache.slots
        self.token_ids = np.zeros((slots, 1), np.int64)
        self.positions = np.zeros((slots, 1), np.int64)
        self.lengths = np.zeros(slots, np.int32)
        self.runs = 0
        self._graph = graph
        self._is_invariant = is_invariant
        self._is_ahead = ahead
        self._replays = replays
        self._fetcher = DeviceCopier(cache.device, 1)
        self._numbers: dict[int, int] = {}
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._total = np.array(cache.capacity, np.int32)  # of a decode step: a capture freezes what is on the host
        self._count = 0
        self._stepped: NDArray[np.int64] | None = None
        self._is_uploaded = False
        self._running: ort.IOBinding | None = None

    def prefill(self, row: int, token_ids: NDArray[np.int64], start: int) -> Floats:
        """Reads `token_ids` [n] at positions `start`... of `row`; the logits [1, vocab] after the last of them."""
        return self._read(row, [token_ids], start)

    def prefill_together(self, row: int, prompts: Sequence[NDArray[np.int64]]) -> Floats:
        """Reads whole prompts into the rows from `row` on; the logits [len(prompts), vocab] after each."""
        if self._is_invariant:
            return np.concatenate([self.prefill(row + index, prompt, 0) for index, prompt in enumerate(prompts)])
        return self._read(row, prompts, 0)

    def decode(self, count: int) -> DeviceLogits:
        """Reads one token in each of the rows 0 to `count`, none of them empty; their logits [count, vocab].

        Attention is told the capacity, and looks no further than each row's length.
        """
        if self._running is not None and self._is_uploaded and self._count == count:
            self._finish()
        else:
            self._finish()
            self._upload(count)
            self._run(self._decode_binding(count), self.number(count))
        return DeviceLogits(self, count)

    def decode_row(self, row: int) -> Floats:
        """Reads one token in `row` alone; the logits [1, vocab]."""
        self._finish()
        self._upload(self._count)
        rows = slice(row, row + 1)
        self._run(self._bound_to_decode(rows, slice(0, 1)))
        return self.fetch(row)[None]

    def advance(self, count: int, token_ids: NDArray[np.int64]) -> None:
        """Makes `token_ids` [count] the tokens that the rows 0 to `count` read next, one position further."""
        self.token_ids[:count, 0] = token_ids
        self.positions[:count] += 1
        self.lengths[:count] += 1
        self._is_uploaded = self._stepped is not None and np.array_equal(self._stepped, token_ids)
        self._stepped = None
        if self._is_uploaded and self._is_ahead:
            self._running = self._decode_binding(count)
            self._run(self._running, self.number(count), waits=False)

    def stepped(self, token_ids: NDArray[np.int64]) -> None:
        """Is told that the device has chosen `token_ids` [count] and moved its own copies one position on."""
        self._stepped = token_ids

    def place(self, row: int, token_id: int, length: int) -> None:
        """Makes `token_id` the token that `row` reads next, after `length` positions."""
        self._change()
        self.token_ids[row, 0] = token_id
        self.positions[row, 0] = length
        self.lengths[row] = length

    def copy(self, source: int, target: int, length: int) -> None:
        """Gives row `target` the first `length` positions of row `source`; what it reads next is still to be placed."""
        self._change()
        self.cache.copy(source, target, length)
        self.lengths[target] = self.positions[target, 0] = length

    def move(self, source: int, target: int, keeps: int = 0) -> None:
        """Makes row `target` what row `source` is, and lets `source` have the first `keeps` positions of `target`."""
        self._change()
        length = int(self.lengths[source])
        self.cache.move(source, target, length, keeps)
        self.place(target, int(self.token_ids[source, 0]), length)
        if keeps:
            self.lengths[source] = self.positions[source, 0] = keeps

    def batch(self, count: int) -> int:
        """How many rows a step of `count` reads: a power of two, or all."""
        slots = self.cache.slots
        return slots if self._is_invariant else min(1 << (count - 1).bit_length(), slots)

    def number(self, count: int) -> int:
        """The number under which this session's runs of such a batch are captured."""
        if not self._replays:
            return EAGER
        batch = self.batch(count)
        if batch not in self._numbers:
            self._numbers[batch] = self._graph.runs.new_number()
        return self._numbers[batch]

    def fetch(self, row: int) -> Floats:
        """The logits [vocab] of a row after the last run."""
        return self._fetcher.fetch(self.arrays.logits, row).view(np.float32)

    def _read(self, row: int, prompts: Sequence[NDArray[np.int64]], start: int) -> Floats:
        self._change()
        counts = np.array([len(prompt) for prompt in prompts])
        width = padded_width(int(counts.max()))
        token_ids = np.zeros((len(prompts), width), np.int64)
        for line, prompt in zip(token_ids, prompts, strict=True):
            line[: len(prompt)] = prompt
        rows = slice(row, row + len(prompts))
        binding = self._bound(rows)
        ends = np.full(len(prompts), start + width) if start else counts
        self._graph.bind_prompt(binding, token_ids, (ends - 1).astype(np.int32), start)
        binding.bind_cpu_input("answered", np.arange(len(prompts)) * width + counts - 1)
        self._run(binding)
        self.lengths[rows] = self.positions[rows, 0] = start + counts
        return np.stack([self.fetch(index) for index in range(rows.start, rows.stop)])

    def _run(self, binding: ort.IOBinding, number: int = EAGER, *, waits: bool = True) -> None:
        self.runs += 1
        self._graph.runs.run(binding, number, waits=waits)

    def _change(self) -> None:
        """Comes before whatever changes rows: what the device runs must not see it half done."""
        self._finish()
        self._is_uploaded = False

    def _finish(self) -> None:
        if self._running is not None:
            self._graph.runs.finish(self._running)
            self._running = None

    def _upload(self, count: int) -> None:
        """Tells the device what the host has changed, and which rows step: those of sequences."""
        if self._is_uploaded and self._count == count:
            return
        self._count = count
        self.arrays.token_ids.write(self.token_ids)
        self.arrays.positions.write(self.positions)
        self.arrays.lengths.write(self.lengths)
        self.arrays.strides.write((np.arange(self.cache.slots) < count).astype(np.int32))
        self._is_uploaded = True

    def _decode_binding(self, count: int) -> ort.IOBinding:
        """Always the same for a batch: a replay reads and writes where its capture did."""
        batch = self.batch(count)
        if (0, batch) not in self._bindings:
            self._bindings[0, batch] = self._bound_to_decode(slice(0, batch), slice(0, batch))
        return self._bindings[0, batch]

    def _bound_to_decode(self, rows: slice, answered: slice) -> ort.IOBinding:
        binding, arrays = self._bound(rows), self.arrays
        arrays.token_ids.bind_input(binding, "input_ids", rows)
        if self._graph.has_positions:
            arrays.positions.bind_input(binding, "position_ids", rows)
        arrays.lengths.bind_input(binding, "seqlens_k", rows)
        arrays.answered.bind_input(binding, "answered", answered)
        binding.bind_cpu_input("total_sequence_length", self._total)
        return binding

    def _bound(self, rows: slice) -> ort.IOBinding:
        binding = self._graph.runs.binding()
        self.arrays.logits.bind_output(binding, "logits", rows)
        self.arrays.hidden.bind_output(binding, "hidden", rows)
        self._graph.bind_cache(binding, self.cache, rows)
        return binding


class StepArrays:
    """What a decode step reads and writes besides the cache, row by row, in the device's memory.

    `strides` int32 [slots] is 1 for rows that go one position on with each step, 0 for those that only fill a batch.
    """

    def __init__(self, graph: DeviceGraph, slots: int) -> None:
        device = graph.device
        self.token_ids = DeviceArray(device, (slots, 1), TensorProto.INT64)
        self.positions = DeviceArray(device, (slots, 1), TensorProto.INT64)
        self.lengths = DeviceArray(device, (slots,), TensorProto.INT32)
        self.strides = DeviceArray(device, (slots,), TensorProto.INT32)
        self.answered = DeviceArray(device, (slots,), TensorProto.INT64)
        self.answered.write(np.arange(slots))
        self.logits = DeviceArray(device, (slots, graph.architecture.vocab_size), TensorProto.FLOAT)
        self.hidden = DeviceArray(device, (slots, graph.architecture.width), TensorProto.FLOAT)
