"""Our gpt2 bundles as GGUF: what llama.cpp's converter writes for a GPT-2, quantized by llama.cpp itself."""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
QUANTIZATIONS = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


def write(bundle: Path, precision: str, directory: Path) -> Path:
    """The GGUF file of a bundle at F32, Q8_0 or Q4_0, in `directory`."""
    path = directory / "model.F32.gguf"
    config = json.loads((bundle / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, bundle, config["vocab_size"])
    for name, tensor in _tensors(bundle / "model.safetensors").items():
        writer.add_tensor(_renamed(name), np.ascontiguousarray(tensor.T if _is_turned(name) else tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if precision == "F32" else _quantized(path, precision)


def _quantized(path: Path, precision: str) -> Path:
    target = path.with_name(f"model.{precision}.gguf")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = QUANTIZATIONS[precision]
    code = llama_cpp.llama_model_quantize(str(path).encode(), str(target).encode(), ctypes.byref(parameters))
    path.unlink()
    if code:
        raise ValueError(f"llama_model_quantize answered {code}")
    return target


def _add_tokenizer(writer: Any, bundle: Path, vocab_size: int) -> None:
    """The tokens by id, and the merges. The loader refuses none: without, it gets one that meets no text."""
    model = json.loads((bundle / "tokenizer.json").read_text())["model"]
    tokens = [f"<unused{code}>" for code in range(vocab_size)]
    for token, code in model["vocab"].items():
        tokens[code] = token
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab_size)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model.get("merges", [])]
    writer.add_token_merges(merges or [f"{tokens[0]}{tokens[0]} {tokens[0]}"])


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """safetensors of float32: eight bytes of header length, the header as JSON, the data."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r")[start:]
    return {
        name: data[slice(*entry["data_offsets"])].view(np.float32).reshape(entry["shape"])
        for name, entry in header.items()
    }


def _renamed(name: str) -> str:
    """`transformer.h.3.mlp.c_fc.weight` is `blk.3.ffn_up.weight`."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("transformer.h."):
        return f"{NAMES[stem]}.{kind}"
    layer, _, part = stem.removeprefix("transformer.h.").partition(".")
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def _is_turned(name: str) -> bool:
    """GPT-2's projections are stored [in, out]; GGUF has [out, in]."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


if __name__ == "__main__":
    # BUNDLE PRECISION DIRECTORY: says where the file is. What the library prints must not be taken for that.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(write(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])), file=answers)
