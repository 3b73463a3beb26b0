"""Models of every family and odd shape, with random weights that let no operation go unnoticed."""

import numpy as np

from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, write_json
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import write_safetensors

# family, changes: odd vocabularies and widths, one head, grouped heads, heads wider than the model, no MLP to speak of
SHAPES = {
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"tie_embeddings": False, "vocab_size": 131}),
    "gpt2-one-head-of-8": ("gpt2", {"width": 8, "heads": 1, "head_size": 8, "mlp_width": 5, "layers": 1}),
    "llama": ("llama", {}),
    "llama-untied-grouped": ("llama", {"tie_embeddings": False, "kv_heads": 2, "rope_theta": 5e5}),
    "llama-odd-width": ("llama", {"width": 75, "heads": 3, "kv_heads": 1, "head_size": 32, "mlp_width": 101}),
    "qwen3": ("qwen3", {}),
    "qwen3-untied-one-kv-head": ("qwen3", {"tie_embeddings": False, "kv_heads": 1, "norm_epsilon": 1e-5}),
    "qwen3-wide-heads": ("qwen3", {"width": 48, "heads": 4, "kv_heads": 2, "head_size": 64, "vocab_size": 3}),
}


def architecture(shape):
    family, changes = SHAPES[shape]
    sizes = {"vocab_size": 67, "context_length": 256, "width": 96, "layers": 2, "heads": 6, "head_size": 16}
    return Architecture.derive(family, **(sizes | changes))


def write_model(directory, a, seed=0):
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in a.tensors().items():
        # Norm weights around one, and everything large enough that an operation left out shows in the logits.
        is_gain = len(shape) == 1 and name.endswith("weight")
        tensors[name] = (random.normal(0, 0.15, shape) + is_gain).astype(np.float32)
    write_safetensors(directory / WEIGHTS_FILE, tensors, {"format": "pt"})
    write_json(directory / CONFIG_FILE, a.to_config())
    return directory
