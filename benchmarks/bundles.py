"""The models that are measured: random weights from a fixed seed, written as bundles in every precision that we export.

Speed does not depend on what the weights are, only on their shapes.
"""

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from octavo.formats.architecture import Architecture, Family
from octavo.formats.bundle import GENERATION_CONFIG_FILE, REQUIRED_FILES, write_bundle
from octavo.formats.conformance import CONFORMANCE_FILE, Conformance
from octavo.formats.tokenizer import Tokenizer
from services.trainer.conversion import Conversion
from services.trainer.onnx_export import export_graph
from services.trainer.parity import record_conformance
from services.trainer.yardstick import Yardstick

PRECISIONS = {"cpu": ("int8", "int8_weights", "int4"), "cuda": ("fp16", "bf16")}
"""What is measured beside fp32, by device."""

CORPUS_CHARACTERS = 16 << 20
"""Enough of Python's own library for 50,257 tokens."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's dimensions; `prefill` is the length of the prompt whose reading is timed."""

    name: str
    layers: int
    width: int
    heads: int
    vocab_size: int
    context: int
    prefill: int

    def architecture(self, family: Family) -> Architecture:
        """As that family: the MLP as wide as the family makes it, so that parameters are nearly as many."""
        return Architecture.derive(
            family,
            vocab_size=self.vocab_size,
            context_length=self.context,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
        )


GPT2 = Shape(name="GPT-2 124 M", layers=12, width=768, heads=12, vocab_size=50257, context=1024, prefill=512)
CHARACTERS = Shape(name="characters 10.7 M", layers=6, width=384, heads=6, vocab_size=65, context=256, prefill=192)
SHAPES = (GPT2, CHARACTERS)


def write_checkpoint(directory: Path, shape: Shape, family: Family = "gpt2") -> Path:
    """Config, random weights and a tokenizer of just that many tokens, without graphs: what every peer can read."""
    directory.mkdir(parents=True, exist_ok=True)
    architecture = shape.architecture(family)
    random = np.random.default_rng(0)
    tensors = {
        name: np.ones(size, np.float32) if _is_gain(name) else random.normal(0, 0.02, size).astype(np.float32)
        for name, size in architecture.tensors().items()
    }
    write_bundle(directory, architecture=architecture, tensors=tensors, tokenizer=_tokenizer(shape.vocab_size))
    return directory


def served(bundles: Path, shape: Shape, device: str = "cpu") -> tuple[Path, list[str]]:
    """The shape's bundle below `bundles` and the precisions that it has; made if an earlier benchmark has not."""
    directory = bundles / f"{shape.name.replace(' ', '-')}-{device}"
    precisions = ["fp32", *PRECISIONS[device]]
    if not (directory / CONFORMANCE_FILE).exists() or set(precisions) - set(Conformance.read(directory).precisions):
        _write_served(directory, shape, device)
    return directory, precisions


def _write_served(directory: Path, shape: Shape, device: str) -> None:
    """A checkpoint with its graphs, made and proven as an export makes them.

    What is lost by fewer bits says nothing here, since the weights are random: it is looked at only briefly.
    """
    write_checkpoint(directory, shape)
    export_graph(directory)
    record_conformance(directory)
    windows = tuple(np.array(ids, np.int64) for ids in prompts(shape, 8, 128, seed=1))
    yardstick = Yardstick(windows=windows, held_out=windows[0], held_out_bytes=len(windows[0]))
    conversion = Conversion(
        directory,
        yardstick,
        max_increase=float("inf"),
        threads=len(os.sched_getaffinity(0)),
        say=lambda phase, text: None,
        heed=lambda: None,
    )
    for precision in PRECISIONS[device]:
        conversion.make(precision)


def link_checkpoint(bundle: Path, directory: Path) -> Path:
    """The files of a bundle that every peer can read, without those of other precisions: vLLM loads all it finds."""
    directory.mkdir(parents=True)
    for name in (*REQUIRED_FILES, GENERATION_CONFIG_FILE):
        (directory / name).symlink_to((bundle / name).absolute())
    return directory


def prompts(shape: Shape, count: int, length: int, seed: int) -> list[list[int]]:
    """So many prompts of random tokens; another seed gives others, so that no prefix is ever met again."""
    found: list[list[int]] = np.random.default_rng(seed).integers(0, shape.vocab_size, (count, length)).tolist()
    return found


def _is_gain(name: str) -> bool:
    return name.endswith("weight") and ("ln_" in name or "norm" in name)


@cache
def _tokenizer(vocab_size: int) -> Tokenizer:
    if vocab_size < 256:
        return Tokenizer.train_characters("".join(map(chr, range(32, 31 + vocab_size))), has_end=True)
    return Tokenizer.train_bpe(_python_library(), vocab_size=vocab_size)


def _python_library() -> Iterator[str]:
    """Source texts of the running Python's library, in one order on every run."""
    characters = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if characters < CORPUS_CHARACTERS and "site-packages" not in path.parts:
            text = path.read_text(errors="replace")
            characters += len(text)
            yield text
