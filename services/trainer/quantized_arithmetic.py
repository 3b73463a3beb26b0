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
    """fp32 with a cache of int8, one scale for each channel of each head.

    ONNX Runtime's kernel for one query at a time reads such a cache twice as fast as one of floats, the one for many
    queries four times as slowly. So prompts have a graph of their own (`reads_prompts`): a cache of floats, into which
    keys and values go rounded as the other cache will hold them, and their codes as outputs.
    """

    def __init__(self, *, reads_prompts: bool = False) -> None:
        self.keeps_codes = reads_prompts
        self.cache_type = TensorProto.FLOAT if reads_prompts else TensorProto.INT8
        self.cache_element_bytes = 4 if reads_prompts else 1

    def cached(self, nodes: GraphNodes, layer: int, part: str, x: str) -> str:
        at = f"layer.{layer}.{part}"
        flat = nodes.constant("flat_scales", np.array([-1], np.int64))
        scales = nodes.node("Reshape", [nodes.tensor(f"{at}.scales"), flat], f"{at}.flat_scales")
        one, zero = nodes.constant("one", np.array(1, np.float32)), nodes.constant("zero", np.array(0, np.int8))
        # By one scale for all: the kernel for a scale each takes its numbers one by one.
        scaled = nodes.node("Div", [x, scales], f"{at}.scaled")
        codes = nodes.node("QuantizeLinear", [scaled, one, zero], f"{part}_codes.{layer}")
        whole = nodes.node("DequantizeLinear", [codes, one, zero], f"{at}.whole")
        return nodes.node("Mul", [whole, scales], f"{at}.cached")

    def cache_scales(self, nodes: GraphNodes, layer: int) -> list[str]:
        return [] if self.keeps_codes else [nodes.tensor(f"layer.{layer}.{part}.scales") for part in ("key", "value")]

    def cache_attributes(self) -> Mapping[str, Any]:
        if self.keeps_codes:
            return {}
        return {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


class IntegerArithmetic(_QuantizedCache):
    """W8A8: each activation is rounded once for all layers that read it, to a range known beforehand.

    `ranges` by the layer's name: a range that followed from the batch would let one request change another's bits.
    """

    def __init__(self, ranges: Mapping[str, Range], *, reads_prompts: bool = False) -> None:
        super().__init__(reads_prompts=reads_prompts)
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

    def __init__(self, shapes: Mapping[str, tuple[int, int, int, int]], *, reads_prompts: bool = False) -> None:
        super().__init__(reads_prompts=reads_prompts)
        self._shapes = shapes

    def linear(
        self, nodes: GraphNodes, x: str, names: Sequence[str], result: str, *, is_turned: bool, bias: str = ""
    ) -> list[str]:
        del names, is_turned
        return [self._product(nodes, x, result, result, bias)]

    def head(self, nodes: GraphNodes, hidden: str, name: str) -> str:
        del name
        return self._product(nodes, hidden, "head", "logits")

    def _product(self, nodes: GraphNodes, x: str, layer: str, result: str, bias: str = "") -> str:
        inputs = [x, nodes.tensor(layer + ".weight"), nodes.tensor(layer + ".scales")]
        if bias:
            # Between them come zero points and groups. A node less each: 3 to 4 % of a step of one small row.
            inputs += ["", "", nodes.tensor(bias)]
        rows, columns, bits, size = self._shapes[layer]
        # Level 4, activations rounded to 8 bits row by row, is the fast kernel, and its rows are independent.
        attributes = {"K": rows, "N": columns, "bits": bits, "block_size": size, "accuracy_level": 4}
        return nodes.node("MatMulNBits", inputs, result, domain=CONTRIB, **attributes)
