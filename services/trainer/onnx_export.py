"""model.onnx: the served graph, built node by node over the checkpoint's own bytes.

No tracing and no torch. The graph holds no weights: each initializer is a byte range of model.safetensors, or of a
file beside it for other precisions. Where a kernel wants another layout (q, k, v side by side; [in, out] for
MatMul), Concat and Transpose nodes say so, and ONNX Runtime folds them once when it loads the session.

Contract, which the inference engine binds by name:

  inputs   input_ids int64 [batch, sequence]
           position_ids int64 [batch, sequence]            gpt2, and graphs that read prompts for another; the rotary
                                                           families' others count by seqlens_k
           seqlens_k int32 [batch]                         total length (past + new) of each row, minus one
           total_sequence_length int32 []                  the largest total length
           answered int64 [answers, 2]                     (row, index) of each token after which logits are wanted
           past_key.{l}, past_value.{l} [batch, kv_heads, capacity, head_size]
  outputs  logits float32 [answers, vocab]
           hidden float32 [answers, width]                 what the head reads
           present_key.{l}, present_value.{l}              to be bound to the same memory as past_*
           key_codes.{l}, value_codes.{l} int8 [batch, sequence, kv_width]    only where prompts have this graph for
                                                           themselves: what belongs into the cache of the other

Rows grow from cache index 0, padded on the right. Several tokens of several rows may be fed at once only when
no row has a past (sequence == total_sequence_length); with a past, feed one row, or one token of each row.
One graph serves decoding (each row's token answered), prompts (each row's last token) and scoring (all tokens).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

import octavo
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, GRAPH_FILE, read_json, require_tensors
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import TensorHeader, read_header
from services.trainer.arithmetic import Arithmetic, sum_of
from services.trainer.graph_nodes import CONTRIB, GraphNodes, StoredTensor, as_index, shaped, tensors_of

# Opset 23 is the first with RMSNormalization; IR 11 came with it.
_OPSET: Final = 23
_IR_VERSION: Final = 11


def export_graph(bundle: Path) -> Path:
    """Write model.onnx beside config.json and model.safetensors of `bundle`, checked, and return it."""
    architecture = Architecture.from_config(read_json(bundle / CONFIG_FILE))
    return write_graph(build_graph(architecture, read_header(bundle / WEIGHTS_FILE)), bundle / GRAPH_FILE)


def write_graph(model: onnx.ModelProto, path: Path) -> Path:
    """Write a graph beside the files that hold its tensors, and check both together."""
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(path, full_check=False)
    return path


def build_graph(architecture: Architecture, header: TensorHeader) -> onnx.ModelProto:
    """The fp32 graph over the tensors of model.safetensors.

    InvalidArgument unless these are exactly the architecture's tensors, in float32.
    """
    require_tensors(architecture, header)
    return build_graph_of(architecture, tensors_of(WEIGHTS_FILE, header.tensors), Arithmetic())


def build_graph_of(
    architecture: Architecture, tensors: Mapping[str, StoredTensor], arithmetic: Arithmetic
) -> onnx.ModelProto:
    """The graph of an architecture in some arithmetic, over the tensors which that asks for."""
    return _GraphBuilder(architecture, tensors, arithmetic).build()


class _GraphBuilder:
    """The families, layer by layer; every method adds one step and returns the name of its result."""

    def __init__(self, architecture: Architecture, tensors: Mapping[str, StoredTensor], arithmetic: Arithmetic) -> None:
        self._a = architecture
        self._arithmetic = arithmetic
        self._nodes = GraphNodes(tensors)

    def build(self) -> onnx.ModelProto:
        hidden = self._gpt2() if self._a.family == "gpt2" else self._llama()
        self._head(hidden)
        graph = helper.make_graph(
            self._nodes.nodes, self._a.family, self._inputs(), self._outputs(), self._nodes.initializers
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)],
            ir_version=_IR_VERSION,
            producer_name="octavo",
            producer_version=octavo.__version__,
        )
        helper.set_model_props(
            model,
            {
                "octavo.version": octavo.__version__,
                "octavo.family": self._a.family,
                "octavo.context_length": str(self._a.context_length),
                "octavo.cache_element_bytes": str(self._arithmetic.cache_element_bytes),
                "octavo.architecture": json.dumps(self._a.to_dict(), sort_keys=True),
            },
        )
        return model

    # The families.

    def _gpt2(self) -> str:
        """LayerNorm before each half, learned positions, tanh-GELU; returns the normalised hidden states."""
        tokens = self._arithmetic.embedding(self._nodes, "transformer.wte.weight", "input_ids", "tokens")
        places = self._arithmetic.embedding(self._nodes, "transformer.wpe.weight", "position_ids", "places")
        normed, residual = self._add_and_norm([tokens, places], "transformer.h.0.ln_1", "embedding")
        for layer in range(self._a.layers):
            block, at = f"transformer.h.{layer}.", f"layer.{layer}."
            qkv = sum_of(self._nodes, self._linear(normed, [block + "attn.c_attn"], at + "qkv"), at + "qkv")
            attended = self._attention(layer, [qkv, "", ""])
            attended, residual = self._keep_answered(layer, attended, residual)
            out = self._linear(attended, [block + "attn.c_proj"], at + "attention_out")
            normed, residual = self._add_and_norm([*out, residual], block + "ln_2", at + "mlp")
            wide = self._linear(normed, [block + "mlp.c_fc"], at + "mlp_in")
            gelu = self._nodes.node("FastGelu", wide, at + "gelu", domain=CONTRIB)
            out = self._linear(gelu, [block + "mlp.c_proj"], at + "mlp_out")
            is_last = layer == self._a.layers - 1
            following = "transformer.ln_f" if is_last else f"transformer.h.{layer + 1}.ln_1"
            normed, residual = self._add_and_norm([*out, residual], following, at + "end")
        return normed

    def _llama(self) -> str:
        """RMSNorm before each half, rotary positions, SwiGLU, for qwen3 a norm of each query and key head."""
        residual = self._arithmetic.embedding(self._nodes, "model.embed_tokens.weight", "input_ids", "tokens")
        normed = self._rms_norm(residual, "model.layers.0.input_layernorm.weight", "embedding")
        for layer in range(self._a.layers):
            block, at = f"model.layers.{layer}.", f"layer.{layer}."
            names = [f"{block}self_attn.{part}_proj" for part in "qkv"]
            qkv = self._linear(normed, names, at + "qkv")[0]
            is_qwen3 = self._a.family == "qwen3"
            parts = self._norm_heads(qkv, block + "self_attn.", at) if is_qwen3 else [qkv, "", ""]
            attended = self._attention(layer, parts)
            attended, residual = self._keep_answered(layer, attended, residual)
            out = self._linear(attended, [block + "self_attn.o_proj"], at + "attention_out")
            normed, residual = self._add_and_norm([*out, residual], block + "post_attention_layernorm", at + "mlp")
            gated = self._swiglu(normed, block + "mlp.", at)
            out = self._linear(gated, [block + "mlp.down_proj"], at + "mlp_out")
            is_last = layer == self._a.layers - 1
            following = "model.norm" if is_last else f"model.layers.{layer + 1}.input_layernorm"
            normed, residual = self._add_and_norm([*out, residual], following, at + "end")
        return normed

    def _head(self, hidden: str) -> None:
        tied = "transformer.wte.weight" if self._a.family == "gpt2" else "model.embed_tokens.weight"
        self._nodes.node("Cast", [hidden], "hidden", to=TensorProto.FLOAT)
        self._arithmetic.head(self._nodes, hidden, tied if self._a.tie_embeddings else "lm_head.weight")

    # The steps.

    def _linear(self, x: str, names: Sequence[str], result: str) -> list[str]:
        """The product, and behind it the bias where there is one that is still to be added."""
        is_gpt2 = self._a.family == "gpt2"
        bias = names[0] + ".bias" if is_gpt2 else ""
        return self._arithmetic.linear(self._nodes, x, names, result, is_turned=not is_gpt2, bias=bias)

    def _attention(self, layer: int, qkv: Sequence[str]) -> str:
        past = [f"past_key.{layer}", f"past_value.{layer}"]
        rotates = self._a.has_rope and not self._arithmetic.keeps_codes
        if self._arithmetic.keeps_codes:
            qkv = self._as_cached(layer, qkv)
        rotary = [self._rotary_table("cos"), self._rotary_table("sin")] if rotates else ["", ""]
        # Between them come position ids, a bias of the scores and a sink, which we have no use for.
        scales = ["", "", "", *self._arithmetic.cache_scales(self._nodes, layer)]
        inputs = [*qkv, *past, "seqlens_k", "total_sequence_length", *rotary, *scales]
        while not inputs[-1]:
            inputs.pop()
        result = f"layer.{layer}.attention"
        self._nodes.node_of_many(
            "GroupQueryAttention",
            inputs,
            [result, f"present_key.{layer}", f"present_value.{layer}"],
            domain=CONTRIB,
            num_heads=self._a.heads,
            kv_num_heads=self._a.kv_heads,
            do_rotary=int(rotates),
            **self._arithmetic.cache_attributes(),
        )
        return result

    def _as_cached(self, layer: int, qkv: Sequence[str]) -> list[str]:
        """q, and k and v as another graph's cache will hold them: rotated, if at all, before they are rounded."""
        query, key, value = qkv if qkv[1] else self._split_heads(qkv[0], f"layer.{layer}.")
        if self._a.has_rope:
            query, key = (self._rotated(part, f"{part}.rotated") for part in (query, key))
        cached = self._arithmetic.cached
        return [query, cached(self._nodes, layer, "key", key), cached(self._nodes, layer, "value", value)]

    def _rotated(self, x: str, result: str) -> str:
        tables = [self._rotary_table("cos"), self._rotary_table("sin")]
        return self._nodes.node("RotaryEmbedding", [x, "position_ids", *tables], result, domain=CONTRIB)

    def _keep_answered(self, layer: int, attended: str, residual: str) -> tuple[str, str]:
        """After the last attention only the tokens that the head will read go on: a prompt skips one MLP."""
        if layer != self._a.layers - 1:
            return attended, residual
        return (
            self._nodes.node("GatherND", [attended, "answered"], "answered_attended"),
            self._nodes.node("GatherND", [residual, "answered"], "answered_residual"),
        )

    def _add_and_norm(self, parts: Sequence[str], norm: str, result: str) -> tuple[str, str]:
        """The sum of `parts`, a bias among them, normalised, and the sum itself: the residual.

        Two nodes rather than com.microsoft's Skip…Normalization, whose CPU kernels are scalar: for 32 rows of 384
        8 us instead of 54 (LayerNorm) and 6 instead of 10 (RMSNorm). Sum, unlike Add, is not fused back into it.
        """
        residual = self._nodes.node("Sum", parts, result + ".residual")
        if self._a.has_rope:
            return self._rms_norm(residual, norm + ".weight", result + ".normed"), residual
        weight, bias = self._nodes.tensor(norm + ".weight"), self._nodes.tensor(norm + ".bias")
        normed = self._nodes.node(
            "LayerNormalization",
            [residual, weight, bias],
            result + ".normed",
            axis=-1,
            epsilon=self._a.norm_epsilon,
        )
        return normed, residual

    def _rms_norm(self, x: str, weight: str, result: str) -> str:
        inputs = [x, self._nodes.tensor(weight)]
        return self._nodes.node("RMSNormalization", inputs, result, axis=-1, epsilon=self._a.norm_epsilon)

    def _norm_heads(self, qkv: str, attention: str, at: str) -> list[str]:
        """qwen3's QK-norm: every query head and every key head is normalised by itself; values are not."""
        parts = self._split_heads(qkv, at)
        heads = self._nodes.constant("heads", as_index([0, 0, -1, self._a.head_size]))
        flat = self._nodes.constant("flat", as_index([0, 0, -1]))
        for index, part in enumerate("qk"):
            shaped_part = self._nodes.node("Reshape", [parts[index], heads], f"{at}{part}.heads")
            normed = self._rms_norm(shaped_part, f"{attention}{part}_norm.weight", f"{at}{part}.normed")
            parts[index] = self._nodes.node("Reshape", [normed, flat], f"{at}{part}.flat")
        return parts

    def _split_heads(self, qkv: str, at: str) -> list[str]:
        widths = as_index([self._a.attention_width, self._a.kv_width, self._a.kv_width])
        sizes = self._nodes.constant("qkv_widths", widths)
        return self._nodes.node_of_many("Split", [qkv, sizes], [f"{at}{part}" for part in "qkv"], axis=-1)

    def _swiglu(self, x: str, mlp: str, at: str) -> str:
        """Gate and up by a matrix each: one for both costs a Split, 50 us more for a chunk of 256 of width 384."""
        gate = self._linear(x, [mlp + "gate_proj"], at + "gate")[0]
        up = self._linear(x, [mlp + "up_proj"], at + "up")[0]
        # QuickGelu is x * sigmoid(alpha * x): with alpha 1 it is SiLU.
        silu = self._nodes.node("QuickGelu", [gate], at + "silu", domain=CONTRIB, alpha=1.0)
        return self._nodes.node("Mul", [silu, up], at + "gated")

    def _rotary_table(self, function: str) -> str:
        """cos or sin [context, head_size / 2] in float32, angles as transformers computes them.

        The kernel wants a row for each token that is fed, padding to an even number included.
        """
        a = self._a
        exponents = np.arange(0, a.head_size, 2, dtype=np.float32) / np.float32(a.head_size)
        frequencies = np.float32(1) / np.power(np.float32(a.rope_theta or 1), exponents)
        angles = np.arange(a.context_length + a.context_length % 2, dtype=np.float32)[:, None] * frequencies[None, :]
        table = np.cos(angles) if function == "cos" else np.sin(angles)
        dtype = helper.tensor_dtype_to_np_dtype(self._arithmetic.element_type)
        return self._nodes.constant(f"rotary_{function}", table.astype(dtype))

    # The contract.

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        tokens = ["batch", "sequence"]
        values = [shaped("input_ids", TensorProto.INT64, tokens)]
        if not self._a.has_rope or self._arithmetic.keeps_codes:
            values.append(shaped("position_ids", TensorProto.INT64, tokens))
        values.append(shaped("seqlens_k", TensorProto.INT32, ["batch"]))
        values.append(shaped("total_sequence_length", TensorProto.INT32, []))
        values.append(shaped("answered", TensorProto.INT64, ["answers", 2]))
        return values + self._caches("past")

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        sizes = {"logits": self._a.vocab_size, "hidden": self._a.width}
        values = [shaped(name, TensorProto.FLOAT, ["answers", size]) for name, size in sizes.items()]
        return values + self._caches("present") + (self._codes() if self._arithmetic.keeps_codes else [])

    def _codes(self) -> list[onnx.ValueInfoProto]:
        shape: list[str | int] = ["batch", "sequence", self._a.kv_width]
        return [
            shaped(f"{part}_codes.{layer}", TensorProto.INT8, shape)
            for layer in range(self._a.layers)
            for part in ("key", "value")
        ]

    def _caches(self, when: str) -> list[onnx.ValueInfoProto]:
        shape: list[str | int] = ["batch", self._a.kv_heads, "capacity", self._a.head_size]
        return [
            shaped(f"{when}_{part}.{layer}", self._arithmetic.cache_type, shape)
            for layer in range(self._a.layers)
            for part in ("key", "value")
        ]
