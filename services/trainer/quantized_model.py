"""A checkpoint in fewer bits: its tensors searched, folded and rounded, written with the graph that computes with them.

The embedding, positions and biases that stay as they are remain in model.safetensors, read from there by both graphs.
Knows nothing of jobs, nor whether the result is good enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, graph_file, prompt_graph_file, read_json, weights_file
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import read_header, read_tensor, write_safetensors
from services.trainer.activations import Activations
from services.trainer.arithmetic import Arithmetic
from services.trainer.graph_nodes import tensors_of
from services.trainer.onnx_export import build_graph_of, write_graph
from services.trainer.quantization import (
    Floats,
    Range,
    cache_scales,
    fit_range,
    quantize_blocks,
    quantize_blocks_in_turn,
    quantize_columns,
)
from services.trainer.quantized_arithmetic import BlockArithmetic, IntegerArithmetic
from services.trainer.smoothing import Loss, Site, fold, matrix, search, side_by_side, sites, spread_over_inputs

Heed = Callable[[], None]
"""Called between parts of long work; may raise to stop it."""

# Samples that a search multiplies; four times as many chose the same factors.
_SEARCHED_ROWS: Final = 512
# Columns of a matrix that a search looks at: the head of a large vocabulary has fifty thousand.
_SEARCHED_COLUMNS: Final = 2048


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear layer as the graph has it: the name of its result and the weights it puts side by side."""

    name: str
    weights: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Bits of a weight in the layers and in the head, and how many inputs share a scale."""

    layers: int
    head: int
    size: int

    def bits(self, site: Site) -> int:
        return self.head if site.name == "head" else self.layers


class _Quantizer:
    """One checkpoint on its way into one precision."""

    def __init__(self, bundle: Path, seen: Activations, heed: Heed) -> None:
        header = read_header(bundle / WEIGHTS_FILE)
        self.a = Architecture.from_config(read_json(bundle / CONFIG_FILE))
        self.original: dict[str, Floats] = {
            name: read_tensor(bundle / WEIGHTS_FILE, entry) for name, entry in header.tensors.items()
        }
        self._bundle = bundle
        self._header = header
        self._seen = seen
        self._heed = heed
        self.factors: dict[str, Floats] = {}
        self.stored: dict[str, npt.NDArray[Any]] = {}

    def smooth(self, loss: Callable[[Site], Loss]) -> None:
        """Search each activation's factors and fold them all."""
        for site in sites(self.a):
            self._heed()
            columns = _some_columns(matrix(self.a, self.original, site))
            rows = self._seen.by_site[site.name].rows
            found = search(self.a, site, rows[:: max(1, len(rows) // _SEARCHED_ROWS)], columns, loss(site))
            if found is not None:
                self.factors[site.name] = found
        self.folded = fold(self.a, self.original, self.factors)
        self.stored |= {
            name: tensor
            for name, tensor in self.folded.items()
            if tensor is not self.original[name] and tensor.ndim == 1
        }

    def rows(self, site: Site) -> Floats:
        """Samples of an activation as the folded model makes it."""
        return (self._seen.by_site[site.name].rows / self._spread(site)).astype(np.float32)

    def importance(self, site: Site) -> Floats:
        """The mean square of each channel of that."""
        return (self._seen.by_site[site.name].mean_squares / np.square(self._spread(site))).astype(np.float32)

    def linears(self) -> Iterator[tuple[Site, Linear, Floats]]:
        """Every linear layer with its matrix [inputs, outputs], folded."""
        for site in sites(self.a):
            for linear in _linears(self.a, site):
                self._heed()
                yield site, linear, side_by_side(self.a, self.folded, linear.weights)

    def store_cache_scales(self) -> None:
        """Scales of keys and values; values come out of the folded projection."""
        for layer in range(self.a.layers):
            values = self._seen.values[layer]
            factors = self.factors.get(f"layer.{layer}.attention_out")
            if factors is not None:
                values = values / factors.reshape(self.a.kv_heads, 1, self.a.head_size)
            for part, samples in (("key", self._seen.keys[layer]), ("value", values)):
                scales = cache_scales(samples)
                self.stored[f"layer.{layer}.{part}.scales"] = scales.reshape(1, self.a.kv_heads, 1, -1)

    def write(self, precision: str, arithmetic: Callable[..., Arithmetic]) -> Path:
        """Write the tensors, and over them and the checkpoint the graph that decodes, which is returned, and the one
        that reads prompts.
        """
        file = weights_file(precision)
        written = write_safetensors(self._bundle / file, self.stored, {"format": "pt"})
        tensors = tensors_of(WEIGHTS_FILE, self._header.tensors) | tensors_of(file, written.tensors)
        reading = build_graph_of(self.a, tensors, arithmetic(reads_prompts=True))
        write_graph(reading, self._bundle / prompt_graph_file(precision))
        return write_graph(build_graph_of(self.a, tensors, arithmetic()), self._bundle / graph_file(precision))

    def _spread(self, site: Site) -> Floats:
        factors = self.factors.get(site.name)
        if factors is None:
            return np.ones_like(self._seen.by_site[site.name].mean_squares)
        return spread_over_inputs(self.a, site, factors)


def write_int8(bundle: Path, seen: Activations, heed: Heed = lambda: None) -> Path:
    """W8A8 beside the fp32 graph of `bundle`: model.int8.onnx over model.int8.onnx.data; returns the graph."""
    work = _Quantizer(bundle, seen, heed)
    work.smooth(lambda site: _integer_loss)
    ranges: dict[str, Range] = {}
    for site, linear, weight in work.linears():
        if site.name not in ranges:
            ranges[site.name] = fit_range(work.rows(site), np.square(matrix(work.a, work.folded, site)).sum(axis=1))
        ranges[linear.name] = ranges[site.name]
        columns = quantize_columns(weight, work.importance(site))
        work.stored[linear.name + ".weight"], work.stored[linear.name + ".scales"] = columns.values, columns.scales
    work.store_cache_scales()
    return work.write("int8", partial(IntegerArithmetic, ranges))


def write_blocks(bundle: Path, seen: Activations, heed: Heed = lambda: None, *, precision: str, plan: Blocks) -> Path:
    """Weights alone in blocks, beside the fp32 graph of `bundle`; returns the graph."""
    work = _Quantizer(bundle, seen, heed)
    work.smooth(lambda site: _block_loss(plan.bits(site), plan.size))
    shapes: dict[str, tuple[int, int, int, int]] = {}
    for site, linear, weight in work.linears():
        bits = plan.bits(site)
        # At 8 bits there is too little to make up for: measured, nothing was gained.
        blocks = (
            quantize_blocks(weight, bits=bits, size=plan.size, importance=work.importance(site))
            if bits == 8
            else quantize_blocks_in_turn(weight, work.rows(site), bits=bits, size=plan.size)
        )
        work.stored[linear.name + ".weight"], work.stored[linear.name + ".scales"] = blocks.codes, blocks.scales
        shapes[linear.name] = (*weight.shape, bits, plan.size)
    work.store_cache_scales()
    return work.write(precision, partial(BlockArithmetic, shapes))


WRITERS: Final[Mapping[str, Sequence[Callable[[Path, Activations, Heed], Path]]]] = {
    "int8": (write_int8,),
    "int8_weights": (partial(write_blocks, precision="int8_weights", plan=Blocks(layers=8, head=8, size=64)),),
    "int4": tuple(
        partial(write_blocks, precision="int4", plan=Blocks(layers=4, head=head, size=32)) for head in (4, 8)
    ),
}
"""How each precision is written: ways to try in turn until the result is good enough, the fastest to serve first.

The largest blocks with which ONNX Runtime's kernel gives a row the same bits in every batch: at 8 bits 64, at 4 bits
32. Larger ones are read faster, and the last row of an odd number of rows is added up in another order.
"""


def _linears(a: Architecture, site: Site) -> Sequence[Linear]:
    """The linear layers of a site: gate and up are two, q, k and v are one."""
    if site.name.endswith(".mlp_in") and a.family != "gpt2":
        at = site.name.removesuffix("mlp_in")
        names = zip(("gate", "up"), site.weights, strict=True)
        return [Linear(name=at + name, weights=(weight,)) for name, weight in names]
    return [Linear(name=site.name, weights=site.weights)]


def _integer_loss(x: Floats, weight: Floats) -> float:
    found = fit_range(x, np.square(weight).sum(axis=1))
    columns = quantize_columns(weight, np.square(x).mean(axis=0))
    return float(np.square(found.round_trip(x) @ columns.restored() - x @ weight).mean(dtype=np.float64))


def _block_loss(bits: int, size: int) -> Loss:
    def loss(x: Floats, weight: Floats) -> float:
        blocks = quantize_blocks(weight, bits=bits, size=size, importance=np.square(x).mean(axis=0))
        return float(np.square(x @ (blocks.restored() - weight)).mean(dtype=np.float64))

    return loss


def _some_columns(weight: Floats) -> Floats:
    step = max(1, weight.shape[1] // _SEARCHED_COLUMNS)
    return np.ascontiguousarray(weight[:, ::step])
