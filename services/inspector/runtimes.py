"""Which software computes here, and in which versions: read from package metadata, without importing it."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Final

# Distributions by the name under which they are known; the two builds of ONNX Runtime exclude each other.
_DISTRIBUTIONS: Final = (
    ("grpcio", ("grpcio",)),
    ("ml_dtypes", ("ml-dtypes",)),
    ("numpy", ("numpy",)),
    ("octavo", ("octavo",)),
    ("onnx", ("onnx",)),
    ("onnxruntime", ("onnxruntime", "onnxruntime-gpu")),
    ("protobuf", ("protobuf",)),
    ("safetensors", ("safetensors",)),
    ("tokenizers", ("tokenizers",)),
    ("torch", ("torch",)),
    ("transformers", ("transformers",)),
)


def installed_versions() -> dict[str, str]:
    """Versions by name; what is not installed is left out."""
    found = {name: _version(distributions) for name, distributions in _DISTRIBUTIONS}
    installed = {name: version for name, version in found.items() if version}
    return {"python": platform.python_version()} | installed


def _version(distributions: tuple[str, ...]) -> str:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""
