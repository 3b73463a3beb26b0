"""A version's files as a directory: their names, writing the parts that describe a model, opening them again.

Knows nothing of registries. A bundle loads unchanged in transformers; the graphs beside it are others' work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from octavo.errors import InvalidArgument, NotFound
from octavo.formats.architecture import Architecture
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import TensorHeader, read_header, write_safetensors
from octavo.formats.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from octavo.v1.errors_pb2 import Reason

CONFIG_FILE: Final = "config.json"
GENERATION_CONFIG_FILE: Final = "generation_config.json"
GRAPH_FILE: Final = "model.onnx"
# What a version may be exported in, a word each; `PRECISION_` and the word in capitals is its value in the contract.
PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8", "int4", "int8_weights")
# What can be made of a checkpoint, which is fp32 itself.
EXPORTABLE: Final = PRECISIONS[1:]

# What can be read before a graph exists; conformance.json, lineage.json and README.md come with the export.
REQUIRED_FILES: Final = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)

_JSON_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle, consistent in itself: config, weights and tokenizer belong together."""

    directory: Path
    architecture: Architecture
    header: TensorHeader
    tokenizer: Tokenizer

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Read and check; NotFound names missing files, InvalidArgument what contradicts what."""
        missing = [name for name in REQUIRED_FILES if not (directory / name).is_file()]
        if missing:
            raise NotFound(
                Reason.REASON_INVALID_BUNDLE,
                f"the bundle has no {', '.join(missing)}; a version needs {', '.join(REQUIRED_FILES)}",
                files=",".join(missing),
            )
        architecture = Architecture.from_config(read_json(directory / CONFIG_FILE))
        header = read_header(directory / WEIGHTS_FILE)
        require_tensors(architecture, header)
        tokenizer = Tokenizer.load(directory)
        if tokenizer.vocab_size > architecture.vocab_size:
            raise _invalid(
                TOKENIZER_FILE,
                f"it has ids up to {tokenizer.vocab_size - 1}, {CONFIG_FILE} has room for {architecture.vocab_size}",
            )
        return cls(directory=directory, architecture=architecture, header=header, tokenizer=tokenizer)


def write_bundle(
    directory: Path,
    *,
    architecture: Architecture,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    tokenizer: Tokenizer,
    dropout: float = 0.0,
) -> Bundle:
    """Write config, generation config, weights and tokenizer into an existing directory, and open the result.

    `tensors` are the architecture's, by Hugging Face name and in its layout. A failure leaves no whole bundle.
    """
    ids = {"bos_token_id": tokenizer.end_id, "eos_token_id": tokenizer.end_id}
    config = architecture.to_config(**ids, dropout=dropout)
    write_safetensors(directory / WEIGHTS_FILE, tensors, {"format": "pt"})
    tokenizer.save(directory, context_length=architecture.context_length)
    # do_sample: a small model's greedy text soon repeats itself, and 1.0 leaves its distribution as learnt.
    write_json(directory / GENERATION_CONFIG_FILE, ids | {"do_sample": True, "temperature": 1.0})
    write_json(directory / CONFIG_FILE, config)
    return Bundle.open(directory)


def graph_file(precision: str) -> str:
    """The graph of a precision: `model.onnx` for fp32, `model.int8.onnx` and so on for the others."""
    return GRAPH_FILE if precision == "fp32" else f"model.{precision}.onnx"


def prompt_graph_file(precision: str) -> str:
    """The graph with which prompts are read where another one decodes; a precision has none, or this one."""
    return f"model.{precision}.prompt.onnx"


def weights_file(precision: str) -> str:
    """The tensors that the graph of a precision reads, beside those it shares with the checkpoint; safetensors too.

    Not by that suffix, since vLLM takes every `.safetensors` of a directory for a part of the checkpoint.
    """
    return WEIGHTS_FILE if precision == "fp32" else f"{graph_file(precision)}.data"


def require_tensors(architecture: Architecture, header: TensorHeader) -> None:
    """InvalidArgument unless the file holds exactly the architecture's tensors, in float32."""
    expected, found = architecture.tensors(), header.tensors
    wrong = dict.fromkeys(expected.keys() - found.keys(), "is missing")
    wrong |= dict.fromkeys(found.keys() - expected.keys(), f"has no place in a {architecture.family}")
    for name in expected.keys() & found.keys():
        entry = found[name]
        if entry.shape != expected[name] or entry.dtype != "F32":
            asked = f"F32 {list(expected[name])}"
            wrong[name] = f"is {entry.dtype} {list(entry.shape)}, {CONFIG_FILE} asks for {asked}"
    if wrong:
        raise InvalidArgument.fields(
            {f"tensors[{name!r}]": text for name, text in sorted(wrong.items())[:16]},
            reason=Reason.REASON_INVALID_TENSOR_FILE,
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 1 MiB; InvalidArgument for anything else."""
    if path.stat().st_size > _JSON_LIMIT_BYTES:
        raise _invalid(path.name, f"it is larger than {_JSON_LIMIT_BYTES} bytes")
    return parse_json(path.name, path.read_bytes())


def parse_json(name: str, content: bytes) -> dict[str, Any]:
    """The JSON object in a file of this name; InvalidArgument for anything else."""
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _invalid(name, f"it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _invalid(name, "it is not a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Sorted and indented, for people and for diffs."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2, sort_keys=True)
    path.write_text(text + "\n", "utf-8")


def _invalid(file: str, text: str) -> InvalidArgument:
    return InvalidArgument.field(file, text, reason=Reason.REASON_INVALID_BUNDLE)
