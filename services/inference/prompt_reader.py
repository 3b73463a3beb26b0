"""Reads prompts with a graph of their own, for a session whose cache holds codes.

ONNX Runtime reads a cache of codes twice as fast as one of floats where a single query looks at it, and four times as
slowly where a prompt does. So prompts have a graph with floats, rounded as the codes will have them: a row of those
here, and the codes go into the engine's cache. Knows rows and tokens; nothing of sequences.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.formats.tensor_file import read_header, read_tensor
from services.inference.kv_cache import KvCache, cut
from services.inference.served_graph import ServedGraph, bind, bind_output

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


class PromptReader:
    """Writes into `cache`, whose codes mean multiples of `scales` [kv_heads, 1, head_size] by tensor.

    A run has `run_tokens` at most, padding included, or those of one row of the cache.
    """

    def __init__(self, graph: ServedGraph, cache: KvCache, scales: Mapping[str, Floats], *, run_tokens: int) -> None:
        self._graph = graph
        self._cache = cache
        self._scales = scales
        self._last_position = graph.architecture.context_length - 1
        self._floats = graph.new_cache(slots=1, capacity=max(cache.capacity + 1, run_tokens))
        self._held: tuple[int, int] | None = None

    def read(
        self,
        row: int,
        token_ids: NDArray[np.int64],
        counts: NDArray[np.int64],
        start: int,
        answers: tuple[Floats, Floats],
    ) -> None:
        """Reads the first `counts` of `token_ids` [rows, width] at positions `start`... into the rows from `row` on.

        `answers` take the logits [rows, vocab] and the hidden states [rows, width] after the last of each. Only a
        single row may have a start.
        """
        rows = len(token_ids)
        if start:
            self._recall(row, start)
        codes = self._run(token_ids, counts, start, answers)
        for name, tensor in self._cache.tensors.items():
            for line, count in enumerate(counts.tolist()):
                # [width, heads * head_size] to [heads, width, head_size]
                heads = codes[name][line, :count].reshape(count, tensor.shape[1], tensor.shape[3])
                tensor[row + line, :, start : start + count] = heads.swapaxes(0, 1)
        self._held = (row, start + int(counts[0])) if rows == 1 else None

    def forget(self, rows: Collection[int]) -> None:
        """Notes that rows of the cache have become others'."""
        if self._held and self._held[0] in rows:
            self._held = None

    def _recall(self, row: int, length: int) -> None:
        """Fills the floats with what the codes of a row mean, unless they still hold it."""
        if self._held != (row, length):
            for name, floats in self._floats.tensors.items():
                np.multiply(self._cache.tensors[name][row, :, :length], self._scales[name], out=floats[0, :, :length])

    def _run(
        self, token_ids: Tokens, counts: Tokens, start: int, answers: tuple[Floats, Floats]
    ) -> dict[str, NDArray[np.int8]]:
        rows, width = token_ids.shape
        positions = np.tile(np.minimum(np.arange(start, start + width), self._last_position), (rows, 1))
        # With a past, padding counts as text: what it leaves behind is overwritten by what comes next.
        lengths = (np.array([start + width - 1]) if start else counts - 1).astype(np.int32)
        total = np.array(start + width, np.int32)
        answered = np.stack([np.arange(rows), counts - 1], axis=1)
        binding = self._graph.binding()
        bind(binding, "input_ids", token_ids)
        bind(binding, "position_ids", positions)
        bind(binding, "seqlens_k", lengths)
        bind(binding, "total_sequence_length", total)
        bind(binding, "answered", answered)
        for name, answer in zip(("logits", "hidden"), answers, strict=True):
            bind_output(binding, name, answer)
        codes = {}
        for name, tensor in self._floats.tensors.items():
            memory = tensor if rows == 1 else cut(tensor, rows, width)
            bind(binding, f"past_{name}", memory)
            bind_output(binding, f"present_{name}", memory)
            part, layer = name.split(".")
            codes[name] = np.empty((rows, width, tensor.shape[1] * tensor.shape[3]), np.int8)
            bind_output(binding, f"{part}_codes.{layer}", codes[name])
        self._graph.run(binding)
        return codes


def read_scales(weights: Path, names: Mapping[str, Any]) -> dict[str, Floats]:
    """What the codes in each of a cache's tensors mean, from the file of a precision's weights."""
    entries = read_header(weights).tensors
    return {
        name: np.array(read_tensor(weights, entries["layer.{1}.{0}.scales".format(*name.split("."))])[0])
        for name in names
    }
