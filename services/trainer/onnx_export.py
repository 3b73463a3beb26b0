"""model.onnx and model.score.onnx: the served graphs, built node by node over the checkpoint's own bytes.

No tracing and no torch. The graphs hold no weights: each initializer is a byte range of model.safetensors.
Where a kernel wants another layout (q, k, v side by side; [in, out] for MatMul), Concat and Transpose nodes say
so, and ONNX Runtime folds them once when it loads the session.

Contract of both graphs, which the inference engine binds by name:

  inputs   input_ids int64 [batch, sequence]
           position_ids int64 [batch, sequence]            gpt2 only; rotary families count by seqlens_k
           seqlens_k int32 [batch]                         total length (past + new) of each row, minus one
           total_sequence_length int32 []                  the largest total length
           last_token int64 [batch]                        model.onnx only: index of each row's last token
           past_key.{l}, past_value.{l} float32 [batch, kv_heads, capacity, head_size]
  outputs  logits float32 [batch, vocab]                   model.onnx: after last_token
           logits float32 [batch, sequence, vocab]         model.score.onnx: after every token
           hidden float32 [batch, sequence, width]         model.score.onnx: what the head reads
           present_key.{l}, present_value.{l}              to be bound to the same memory as past_*

Rows grow from cache index 0, padded on the right. Several tokens of several rows may be fed at once only when
no row has a past (sequence == total_sequence_length); with a past, feed one row, or one token of each row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import octavo
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, GRAPH_FILE, SCORE_GRAPH_FILE, read_json, require_tensors
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import TensorEntry, TensorHeader, read_header

_CONTRIB: Final = "com.microsoft"
# Opset 23 is the first with RMSNormalization; IR 11 came with it.
_OPSET: Final = 23
_IR_VERSION: Final = 11


def export_graphs(bundle: Path) -> tuple[Path, Path]:
    """Write both graphs beside config.json and model.safetensors of `bundle`, checked, and return them."""
    architecture = Architecture.from_config(read_json(bundle / CONFIG_FILE))
    header = read_header(bundle / WEIGHTS_FILE)
    paths = (bundle / GRAPH_FILE, bundle / SCORE_GRAPH_FILE)
    for path, scores_all in zip(paths, (False, True), strict=True):
        model = build_graph(architecture, header, scores_all=scores_all)
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(path, full_check=False)
    return paths


def build_graph(architecture: Architecture, header: TensorHeader, *, scores_all: bool = False) -> onnx.ModelProto:
    """The graph over tensors at these offsets; with `scores_all` the one that answers at every position.

    InvalidArgument unless these are exactly the architecture's tensors, in float32.
    """
    require_tensors(architecture, header)
    return _GraphBuilder(architecture, header.tensors, scores_all=scores_all).build()


class _GraphBuilder:
    """Collects nodes and initializers; every method adds one step and returns the name of its result."""

    def __init__(self, architecture: Architecture, entries: Mapping[str, TensorEntry], *, scores_all: bool) -> None:
        self._a = architecture
        self._entries = entries
        self._scores_all = scores_all
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def build(self) -> onnx.ModelProto:
        hidden = self._gpt2() if self._a.family == "gpt2" else self._llama()
        self._head(hidden)
        graph = helper.make_graph(
            self._nodes, self._a.family, self._inputs(), self._outputs(), list(self._initializers.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)],
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
                "octavo.architecture": json.dumps(self._a.to_dict(), sort_keys=True),
            },
        )
        return model

    # The families.

    def _gpt2(self) -> str:
        """LayerNorm before each half, learned positions, tanh-GELU; returns the normalised hidden states."""
        tokens = self._node("Gather", [self._weight("transformer.wte.weight"), "input_ids"], "tokens")
        places = self._node("Gather", [self._weight("transformer.wpe.weight"), "position_ids"], "places")
        normed, residual = self._add_and_norm([tokens, places], "transformer.h.0.ln_1", "embedding")
        for layer in range(self._a.layers):
            block, at = f"transformer.h.{layer}.", f"layer.{layer}."
            qkv = self._linear(normed, [block + "attn.c_attn"], at + "qkv", has_bias=True)
            attended = self._attention(layer, [qkv, "", ""])
            attended, residual = self._keep_answered(layer, attended, residual)
            out = self._linear(attended, [block + "attn.c_proj"], at + "attention_out")
            bias = self._weight(block + "attn.c_proj.bias")
            normed, residual = self._add_and_norm([out, bias, residual], block + "ln_2", at + "mlp")
            wide = self._linear(normed, [block + "mlp.c_fc"], at + "mlp_in")
            wide = self._node("FastGelu", [wide, self._weight(block + "mlp.c_fc.bias")], at + "gelu", domain=_CONTRIB)
            out = self._linear(wide, [block + "mlp.c_proj"], at + "mlp_out")
            bias = self._weight(block + "mlp.c_proj.bias")
            is_last = layer == self._a.layers - 1
            following = "transformer.ln_f" if is_last else f"transformer.h.{layer + 1}.ln_1"
            normed, residual = self._add_and_norm([out, bias, residual], following, at + "end")
        return normed

    def _llama(self) -> str:
        """RMSNorm before each half, rotary positions, SwiGLU, for qwen3 a norm of each query and key head."""
        residual = self._node("Gather", [self._weight("model.embed_tokens.weight"), "input_ids"], "tokens")
        normed = self._rms_norm(residual, self._weight("model.layers.0.input_layernorm.weight"), "embedding")
        for layer in range(self._a.layers):
            block, at = f"model.layers.{layer}.", f"layer.{layer}."
            names = [f"{block}self_attn.{part}_proj" for part in "qkv"]
            qkv = self._linear(normed, names, at + "qkv")
            is_qwen3 = self._a.family == "qwen3"
            parts = self._norm_heads(qkv, block + "self_attn.", at) if is_qwen3 else [qkv, "", ""]
            attended = self._attention(layer, parts)
            attended, residual = self._keep_answered(layer, attended, residual)
            out = self._linear(attended, [block + "self_attn.o_proj"], at + "attention_out")
            normed, residual = self._add_and_norm([out, residual], block + "post_attention_layernorm", at + "mlp")
            gated = self._swiglu(normed, block + "mlp.", at)
            out = self._linear(gated, [block + "mlp.down_proj"], at + "mlp_out")
            is_last = layer == self._a.layers - 1
            following = "model.norm" if is_last else f"model.layers.{layer + 1}.input_layernorm"
            normed, residual = self._add_and_norm([out, residual], following, at + "end")
        return normed

    def _head(self, hidden: str) -> None:
        tied = "transformer.wte.weight" if self._a.family == "gpt2" else "model.embed_tokens.weight"
        weight = self._weight(tied if self._a.tie_embeddings else "lm_head.weight")
        if self._scores_all:
            self._node("Identity", [hidden], "hidden")
            self._node("MatMul", [hidden, self._node("Transpose", [weight], "head", perm=[1, 0])], "logits")
        else:
            # Gemm reads a tied head in its own layout: no second copy of the embedding.
            self._node("Gemm", [hidden, weight], "logits", transB=1)

    # The steps.

    def _linear(self, x: str, names: Sequence[str], result: str, *, has_bias: bool = False) -> str:
        """x times the weights of `names`, side by side; Linear's [out, in] is turned, Conv1D's is not."""
        weights = [self._weight(name + ".weight") for name in names]
        weight = weights[0] if len(weights) == 1 else self._node("Concat", weights, result + ".packed", axis=0)
        if self._a.family != "gpt2":
            weight = self._node("Transpose", [weight], result + ".weight", perm=[1, 0])
        product = self._node("MatMul", [x, weight], result + ".product" if has_bias else result)
        return self._node("Add", [product, self._weight(names[0] + ".bias")], result) if has_bias else product

    def _attention(self, layer: int, qkv: Sequence[str]) -> str:
        past = [f"past_key.{layer}", f"past_value.{layer}"]
        rotary = [self._rotary_table("cos"), self._rotary_table("sin")] if self._a.has_rope else []
        result = f"layer.{layer}.attention"
        self._nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [*qkv, *past, "seqlens_k", "total_sequence_length", *rotary],
                [result, f"present_key.{layer}", f"present_value.{layer}"],
                name=result,
                domain=_CONTRIB,
                num_heads=self._a.heads,
                kv_num_heads=self._a.kv_heads,
                do_rotary=int(self._a.has_rope),
            )
        )
        return result

    def _keep_answered(self, layer: int, attended: str, residual: str) -> tuple[str, str]:
        """After the last attention only the rows that the head will read go on: a prompt skips one MLP."""
        if self._scores_all or layer != self._a.layers - 1:
            return attended, residual
        axis = self._constant("last_axis", np.array([1], np.int64))
        index = self._node("Unsqueeze", ["last_token", axis], "last_index")
        return (
            self._node("GatherND", [attended, index], "last_attended", batch_dims=1),
            self._node("GatherND", [residual, index], "last_residual", batch_dims=1),
        )

    def _add_and_norm(self, parts: Sequence[str], norm: str, result: str) -> tuple[str, str]:
        """The sum of `parts`, a bias among them, normalised, and the sum itself: the residual.

        Two nodes rather than com.microsoft's Skip…Normalization, whose CPU kernels are scalar: for 32 rows of 384
        8 us instead of 54 (LayerNorm) and 6 instead of 10 (RMSNorm). Sum, unlike Add, is not fused back into it.
        """
        residual = self._node("Sum", parts, result + ".residual")
        weight = self._weight(norm + ".weight")
        if self._a.has_rope:
            return self._rms_norm(residual, weight, result + ".normed"), residual
        bias = self._weight(norm + ".bias")
        epsilon = self._a.norm_epsilon
        normed = self._node(
            "LayerNormalization", [residual, weight, bias], result + ".normed", axis=-1, epsilon=epsilon
        )
        return normed, residual

    def _rms_norm(self, x: str, weight: str, result: str) -> str:
        return self._node("RMSNormalization", [x, weight], result, axis=-1, epsilon=self._a.norm_epsilon)

    def _norm_heads(self, qkv: str, attention: str, at: str) -> list[str]:
        """qwen3's QK-norm: every query head and every key head is normalised by itself; values are not."""
        widths = np.array([self._a.attention_width, self._a.kv_width, self._a.kv_width], np.int64)
        parts = [f"{at}{part}" for part in "qkv"]
        self._nodes.append(
            helper.make_node("Split", [qkv, self._constant("qkv_widths", widths)], parts, name=at + "split", axis=-1)
        )
        heads = self._constant("heads", np.array([0, 0, -1, self._a.head_size], np.int64))
        flat = self._constant("flat", np.array([0, 0, -1], np.int64))
        for index, part in enumerate("qk"):
            shaped = self._node("Reshape", [parts[index], heads], f"{at}{part}.heads")
            weight = self._weight(f"{attention}{part}_norm.weight")
            normed = self._rms_norm(shaped, weight, f"{at}{part}.normed")
            parts[index] = self._node("Reshape", [normed, flat], f"{at}{part}.flat")
        return parts

    def _swiglu(self, x: str, mlp: str, at: str) -> str:
        """Gate and up by a matrix each: one for both costs a Split, 50 us more for a chunk of 256 of width 384."""
        gate = self._linear(x, [mlp + "gate_proj"], at + "gate")
        up = self._linear(x, [mlp + "up_proj"], at + "up")
        # QuickGelu is x * sigmoid(alpha * x): with alpha 1 it is SiLU.
        silu = self._node("QuickGelu", [gate], at + "silu", domain=_CONTRIB, alpha=1.0)
        return self._node("Mul", [silu, up], at + "gated")

    # The parts.

    def _node(self, operator: str, inputs: Sequence[str], result: str, *, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, list(inputs), [result], name=result, domain=domain, **attributes))
        return result

    def _constant(self, name: str, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        self._initializers.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def _rotary_table(self, function: str) -> str:
        """cos or sin [context, head_size / 2] in float32, angles as transformers computes them."""
        name = f"rotary_{function}"
        if name not in self._initializers:
            a = self._a
            exponents = np.arange(0, a.head_size, 2, dtype=np.float32) / np.float32(a.head_size)
            frequencies = np.float32(1) / np.power(np.float32(a.rope_theta or 1), exponents)
            angles = np.arange(a.context_length, dtype=np.float32)[:, None] * frequencies[None, :]
            self._constant(name, np.cos(angles) if function == "cos" else np.sin(angles))
        return name

    def _weight(self, name: str) -> str:
        if name not in self._initializers:
            entry = self._entries[name]
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=entry.shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": WEIGHTS_FILE, "offset": entry.offset, "length": entry.size_bytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[name] = tensor
        return name

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        tokens = ["batch", "sequence"]
        values = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, tokens)]
        if not self._a.has_rope:
            values.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, tokens))
        values.append(helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"]))
        values.append(helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []))
        if not self._scores_all:
            values.append(helper.make_tensor_value_info("last_token", TensorProto.INT64, ["batch"]))
        return values + self._caches("past")

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        rows: list[str | int] = ["batch", "sequence"] if self._scores_all else ["batch"]
        shapes = {"logits": [*rows, self._a.vocab_size]}
        if self._scores_all:
            shapes["hidden"] = [*rows, self._a.width]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        return values + self._caches("present")

    def _caches(self, when: str) -> list[onnx.ValueInfoProto]:
        shape: list[str | int] = ["batch", self._a.kv_heads, "capacity", self._a.head_size]
        return [
            helper.make_tensor_value_info(f"{when}_{part}.{layer}", TensorProto.FLOAT, shape)
            for layer in range(self._a.layers)
            for part in ("key", "value")
        ]
