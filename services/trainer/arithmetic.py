"""In which numbers a graph computes: how it multiplies by a weight, what its cache holds. One class a precision.

Knows operators and names of tensors; nothing of families or of the order of layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx import TensorProto

from services.trainer.graph_nodes import GraphNodes


class Arithmetic:
    """float32 throughout, over the checkpoint's own bytes; other precisions override what they do otherwise."""

    element_type: int = TensorProto.FLOAT
    """Element type of weights and activations."""

    cache_type: int = TensorProto.FLOAT
    """Element type of keys and values in the cache."""
    cache_element_bytes: int = 4
    keeps_codes: bool = False
    """Whether the graph tells the codes of what it writes into its cache, for the cache of another graph."""

    def linear(
        self, nodes: GraphNodes, x: str, names: Sequence[str], result: str, *, is_turned: bool, bias: str = ""
    ) -> list[str]:
        """x [..., in] times the weights of `names`, side by side: what is to be summed up for the result.

        That is the product, and behind it the bias where the operator has not added it already. `is_turned` says that
        the weights are stored as [out, in], as Linear does; Conv1D's are [in, out].
        """
        weights = [nodes.tensor(name + ".weight") for name in names]
        weight = weights[0]
        if len(weights) > 1:
            weight = nodes.node("Concat", weights, result + ".packed", axis=0 if is_turned else 1)
        if is_turned:
            weight = nodes.node("Transpose", [weight], result + ".weight", perm=[1, 0])
        product = nodes.node("MatMul", [x, weight], result + ".product" if bias else result)
        return [product, nodes.tensor(bias)] if bias else [product]

    def head(self, nodes: GraphNodes, hidden: str, name: str) -> str:
        """hidden [rows, width] times the head's weight [vocab, width]: the logits, float32 [rows, vocab]."""
        # Gemm reads a tied head in its own layout: no second copy of the embedding.
        return nodes.node("Gemm", [hidden, nodes.tensor(name)], "logits", transB=1)

    def embedding(self, nodes: GraphNodes, name: str, ids: str, result: str) -> str:
        """The rows of a table at `ids`."""
        return nodes.node("Gather", [nodes.tensor(name), ids], result)

    def cached(self, nodes: GraphNodes, layer: int, part: str, x: str) -> str:
        """Keys or values [batch, sequence, kv_width] as those who read them from a cache of codes would see them.

        Only for a graph that reads prompts for one that decodes; `keeps_codes` says so.
        """
        del nodes, layer, part
        return x

    def cache_scales(self, nodes: GraphNodes, layer: int) -> list[str]:
        """The scales of keys and values, [1, kv_heads, 1, head_size] each; none where the cache holds floats."""
        del nodes, layer
        return []

    def cache_attributes(self) -> Mapping[str, Any]:
        """What GroupQueryAttention has to be told of its cache."""
        return {}


def sum_of(nodes: GraphNodes, parts: Sequence[str], result: str) -> str:
    """A product and its bias, added where that is still to be done."""
    return nodes.node("Add", parts, result) if len(parts) > 1 else parts[0]
