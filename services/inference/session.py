"""A served graph over one KV cache: prompts, or one token of many sequences.

Knows rows and lengths; knows nothing of requests, text or sampling. Everything is bound once by address: a step
writes into the same arrays, and nothing is allocated or copied on the way.
"""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from services.inference.kv_cache import KvCache
from services.inference.prompt_reader import PromptReader
from services.inference.served_graph import ServedGraph, bind, bind_cache, bind_output

BINDING_LIMIT = 1024
"""Bindings of prompts that are kept: one for each run of rows that was ever read together."""


def padded_width(count: int) -> int:
    """How many tokens are fed where `count` are meant: an even number.

    The attention kernel works on tiles of an even number of tokens. One that is left over alone would go through a
    product of a single row, which rounds otherwise (1e-6): its bits would depend on how a text is cut.
    """
    return count + count % 2


class Session:
    """The engine's way to the graph. Used by one thread at a time.

    Prompts are read by `reader` where the graph has one, otherwise by the graph itself. `token_ids` int64 [slots, 1],
    `positions` int64 [slots, 1] and `lengths` int32 [slots] are the inputs of the next decode step, row by row: the
    token to read, its position, and the number of positions before it (the same number).
    """

    def __init__(self, graph: ServedGraph, cache: KvCache, reader: PromptReader | None = None) -> None:
        self.cache = cache
        self._reader = reader
        self.vocab_size = graph.architecture.vocab_size
        self._graph = graph
        self._last_position = graph.architecture.context_length - 1
        slots = cache.slots
        self.token_ids = np.zeros((slots, 1), np.int64)
        self.positions = np.zeros((slots, 1), np.int64)
        self.lengths = np.zeros(slots, np.int32)
        self._total = np.zeros((), np.int32)
        # Row r of a run is answered after its only token.
        self._answered = np.stack([np.arange(slots), np.zeros(slots, np.int64)], axis=1)
        self._logits = np.zeros((slots, self.vocab_size), np.float32)
        self._hidden = np.zeros((slots, graph.architecture.width), np.float32)
        self._decode_bindings: list[ort.IOBinding | None] = [None] * (slots + 1)
        self._prompt_bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._prompt_lengths = np.zeros(slots, np.int32)
        self._prompt_answered = np.stack([np.arange(slots), np.zeros(slots, np.int64)], axis=1)

    def prefill(self, row: int, token_ids: NDArray[np.int64], start: int) -> NDArray[np.float32]:
        """Reads `token_ids` [n] at positions `start`... of `row`; the logits [1, vocab] after the last of them.

        The array that comes back is overwritten by the next run.
        """
        return self._read(row, [token_ids], start)

    def prefill_together(self, row: int, prompts: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Reads whole prompts into the rows from `row` on; the logits [len(prompts), vocab] after each.

        Bit for bit what each alone would give: padding lies behind a prompt, where attention never looks.
        """
        return self._read(row, prompts, 0)

    def decode(self, count: int) -> NDArray[np.float32]:
        """Reads one token in each of the rows 0 to `count`, none of them empty; their logits [count, vocab].

        The array is overwritten by the next run.
        """
        binding = self._decode_bindings[count] or self._bind_decode(count)
        self._total[...] = self.lengths[:count].max() + 1
        self._graph.run(binding)
        return self._logits[:count]

    def decode_row(self, row: int) -> NDArray[np.float32]:
        """Reads one token in `row` alone: bit for bit what `decode` computes for it; the logits [1, vocab]."""
        rows = slice(row, row + 1)
        self._total[...] = int(self.lengths[row]) + 1
        self._graph.run(self._bound_to_decode(rows))
        return self._logits[rows]

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

    def copy(self, source: int, target: int, length: int) -> None:
        """Gives row `target` the first `length` positions of row `source`; what it reads next is still to be placed."""
        self._forget(target)
        self.cache.copy(source, target, length)

    def move(self, source: int, target: int, keeps: int = 0) -> None:
        """Makes row `target` what row `source` is, and lets `source` have the first `keeps` positions of `target`."""
        length = int(self.lengths[source])
        self._forget(source, target)
        self.cache.move(source, target, length, keeps)
        self.place(target, int(self.token_ids[source, 0]), length)

    def _read(self, row: int, pieces: Sequence[NDArray[np.int64]], start: int) -> NDArray[np.float32]:
        rows, counts = len(pieces), np.array([len(piece) for piece in pieces])
        width = padded_width(int(counts.max()))
        token_ids = np.zeros((rows, width), np.int64)
        for line, piece in zip(token_ids, pieces, strict=True):
            line[: len(piece)] = piece
        if self._reader:
            answers = self._logits[row : row + rows], self._hidden[row : row + rows]
            self._reader.read(row, token_ids, counts, start, answers)
            return answers[0]
        binding = self._prompt_binding(slice(row, row + rows))
        bind(binding, "input_ids", token_ids)
        positions = np.tile(np.minimum(np.arange(start, start + width), self._last_position), (rows, 1))
        if self._graph.has_positions:
            bind(binding, "position_ids", positions)
        # With a past, padding counts as text: what it leaves in the cache is overwritten by what comes next.
        self._prompt_lengths[:rows] = start + width - 1 if start else counts - 1
        self._prompt_answered[:rows, 1] = counts - 1
        # The kernel takes a run for first prompts exactly when this equals its width, that is at start 0.
        self._total[...] = start + width
        self._graph.run(binding)
        return self._logits[row : row + rows]

    def _forget(self, *rows: int) -> None:
        if self._reader:
            self._reader.forget(rows)

    def _prompt_binding(self, rows: slice) -> ort.IOBinding:
        key = (rows.start, rows.stop)
        binding = self._prompt_bindings.get(key)
        if binding is None:
            if len(self._prompt_bindings) >= BINDING_LIMIT:
                self._prompt_bindings.clear()
            count = rows.stop - rows.start
            binding = self._bound(rows, self._prompt_lengths[:count], self._prompt_answered[:count])
            self._prompt_bindings[key] = binding
        return binding

    def _bind_decode(self, count: int) -> ort.IOBinding:
        binding = self._bound_to_decode(slice(0, count))
        self._decode_bindings[count] = binding
        return binding

    def _bound_to_decode(self, rows: slice) -> ort.IOBinding:
        binding = self._bound(rows, self.lengths[rows], self._answered[: rows.stop - rows.start])
        bind(binding, "input_ids", self.token_ids[rows])
        if self._graph.has_positions:
            bind(binding, "position_ids", self.positions[rows])
        return binding

    def _bound(self, rows: slice, lengths: NDArray[np.int32], answered: NDArray[np.int64]) -> ort.IOBinding:
        binding = self._graph.binding()
        bind(binding, "seqlens_k", lengths)
        bind(binding, "total_sequence_length", self._total)
        bind(binding, "answered", answered)
        bind_output(binding, "logits", self._logits[rows])
        bind_output(binding, "hidden", self._hidden[rows])
        bind_cache(binding, self.cache, rows)
        return binding
