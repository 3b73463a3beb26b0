"""Which software computes here, and in which versions: read from package metadata, without importing it.

ONNX Runtime alone is imported, since only it knows its execution providers.
"""

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


class RuntimeProbe:
    """Asks once: what is installed does not change while a process runs."""

    def __init__(self) -> None:
        self._versions: dict[str, str] = {}
        self._providers: list[str] | None = None

    def versions(self) -> dict[str, str]:
        """Versions by name; what is not installed is left out."""
        if not self._versions:
            found = {name: _version(distributions) for name, distributions in _DISTRIBUTIONS}
            self._versions = {"python": platform.python_version()} | {
                name: version for name, version in found.items() if version
            }
        return self._versions

    def execution_providers(self) -> list[str]:
        """ONNX Runtime's execution providers, preferred first; empty where it is not installed."""
        if self._providers is None:
            self._providers = _execution_providers()
        return self._providers


def _version(distributions: tuple[str, ...]) -> str:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _execution_providers() -> list[str]:
    try:
        from onnxruntime import get_available_providers
    except ImportError:
        return []
    return list(get_available_providers())
