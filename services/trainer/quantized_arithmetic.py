"""Graphs that compute in few bits: W8A8 with static activation scales, and weights alone in blocks of 4 or 8 bits.

The tensors they ask for are those that quantized_model.py writes, named after the linear layer: `layer.0.qkv.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from services.trainer.arithmetic import Arithmetic
from services.trainer.graph_nodes import CONTRIB, GraphNodes
from services.trainer.quantization import Range


class _QuantizedCache(Arithmetic):
    """fp32 with a cache of int8, one scale for each channel of each head."""

    cache_type = TensorProto.INT8
    cache_element_bytes = 1

    def cache_scales(self, nodes: GraphNodes, layer: int) -> list[str]:
        return [nodes.tensor(f"layer.{layer}.{part}.scales") for part in ("key", "value")]

    def cache_attributes(self) -> Mapping[str, Any]:
        return {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


class IntegerArithmetic(_QuantizedCache):
    """W8A8: each activation is rounded once for all layers that read it, to a range known beforehand.

    `ranges` by the layer's name: a range that followed from the batch would let one request change another's bits.
    """

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        self._ranges = ranges
        self._rounded: dict[str, list[str]] = {}

    def linear(
        self, nodes: GraphNodes, x: str, names: Sequence[str], result: str, *, is_turned: bool, bias: str = ""
    ) -> list[str]:
        del names, is_turned  # side by side and turned when they were quantized
        return [self._product(nodes, x, result, result, bias)]

    def head(self, nodes: GraphNodes, hidden: str, name: str) -> str:
        del name
        return self._product(nodes, hidden, "head", "logits")

    def _product(self, nodes: GraphNodes, x: str, layer: str, result: str, bias: str = "") -> str:
        codes, scale, zero = self._rounding(nodes, x, self._ranges[layer])
        weight, scales = nodes.tensor(layer + ".weight"), nodes.tensor(layer + ".scales")
        inputs = [codes, weight, scale, scales, zero]
        if bias:
            inputs += ["", nodes.tensor(bias)]
        return nodes.node("MatMulIntegerToFloat", inputs, result, domain=CONTRIB)

    def _rounding(self, nodes: GraphNodes, x: str, found: Range) -> list[str]:
        """The codes of an activation, with the names of their scale and zero point."""
        if x not in self._rounded:
            scale = nodes.constant(x + ".scale", np.array(found.scale, np.float32))
            zero = nodes.constant(x + ".zero_point", np.array(found.zero_point, np.uint8))
            codes = nodes.node("QuantizeLinear", [x, scale, zero], x + ".codes")
            self._rounded[x] = [codes, scale, zero]
        return self._rounded[x]


class BlockArithmetic(_QuantizedCache):
    """Weights in blocks, by MatMulNBits; `shapes` says of each layer its (inputs, outputs, bits, block size)."""

    def __init__(self, shapes: Mapping[str, tuple[int, int, int, int]]) -> None:
        self._shapes = shapes

    def linear(
        self, nodes: GraphNodes, x: str, names: Sequence[str], result: str, *, is_turned: bool, bias: str = ""
    ) -> list[str]:
        del names, is_turned
        product = self._product(nodes, x, result, result + ".product" if bias else result)
        return [product, nodes.tensor(bias)] if bias else [product]

    def head(self, nodes: GraphNodes, hidden: str, name: str) -> str:
        del name
        return self._product(nodes, hidden, "head", "logits")

    def _product(self, nodes: GraphNodes, x: str, layer: str, result: str) -> str:
        inputs = [x, nodes.tensor(layer + ".weight"), nodes.tensor(layer + ".scales")]
        rows, columns, bits, size = self._shapes[layer]
        # Level 4, activations rounded to 8 bits row by row, is the fast kernel, and its rows are independent.
        attributes = {"K": rows, "N": columns, "bits": bits, "block_size": size, "accuracy_level": 4}
        return nodes.node("MatMulNBits", inputs, result, domain=CONTRIB, **attributes)
