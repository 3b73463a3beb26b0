"""What a version consists of: which files and tensors may be, and the digest that stands for them all."""

import hashlib
import re
from collections.abc import Sequence

from octavo.errors import InvalidArgument
from octavo.v1 import errors_pb2
from octavo.v1.registry_pb2 import File, Lineage, TensorDigest, Version
from services.registry import labels, limits, names
from services.registry.change import canonical_json

_PATH_CHARACTERS = 255
_MAXIMUM_FILES = 1000
_MAXIMUM_TENSORS = 100_000
_MAXIMUM_DATASETS = 100
_TENSOR_NAME_CHARACTERS = 255
_WORD_CHARACTERS = 255
_FAMILY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_JOB = re.compile(r"jobs/[a-z0-9][a-z0-9-]{0,62}")


def check(version: Version) -> None:
    """Raises InvalidArgument if the version says anything that it may not, whatever the registry holds."""
    check_files(version.files, "version.files")
    _check_tensors(version.tensors)
    _check_lineage(version.lineage)
    if version.family and not _FAMILY.fullmatch(version.family):
        raise InvalidArgument.field(
            "version.family", f"{version.family[:80]!r} is not a family; such as `gpt2`, `llama`, `qwen3`"
        )
    limits.check_not_negative(version.parameter_count, "version.parameter_count")
    limits.check_struct(version.parity, "version.parity")
    limits.check_description(version.description, "version.description")
    limits.check_metrics(version.metrics, "version.metrics")
    labels.check(version.labels, "version.labels")


def check_files(files: Sequence[File], field: str) -> None:
    """Raises InvalidArgument unless each path is relative, plain and given once, and each blob a name."""
    if not files:
        raise InvalidArgument.field(
            field, "is missing; a version has at least one file", reason=errors_pb2.REASON_MISSING_FIELD
        )
    limits.check_count(len(files), field, _MAXIMUM_FILES)
    violations = {}
    seen: dict[str, int] = {}
    for index, file in enumerate(files):
        wrong = _wrong_with_path(file.path)
        if file.path in seen:
            wrong = f"{file.path!r} is there twice, also as {field}[{seen[file.path]}]"
        if wrong:
            violations[f"{field}[{index}].path"] = wrong
        seen[file.path] = index
        names.blob_in(file.blob, f"{field}[{index}].blob")
        limits.check_not_negative(file.size_bytes, f"{field}[{index}].size_bytes")
    violations |= _files_that_are_folders(seen, field)
    if violations:
        raise InvalidArgument.fields(violations)


def digest(version: Version) -> str:
    """`sha256:…` of the canonical JSON of files and tensors, whatever order they were given in."""
    manifest = {
        "files": [
            {
                "path": file.path,
                "digest": file.blob.removeprefix("blobs/"),
                "size_bytes": file.size_bytes,
            }
            for file in sorted(version.files, key=lambda file: file.path)
        ],
        "tensors": {tensor.name: tensor.digest for tensor in version.tensors},
    }
    return f"sha256:{hashlib.sha256(canonical_json(manifest).encode()).hexdigest()}"


def _wrong_with_path(path: str) -> str:
    """What is wrong with a path; empty if nothing is."""
    parts = path.split("/")
    if not path:
        return "is missing; such as `config.json`"
    if len(path) > _PATH_CHARACTERS:
        return f"has {len(path)} characters; {_PATH_CHARACTERS} at most"
    if path.startswith("/") or "\\" in path or ":" in parts[0]:
        return f"{path!r} is not relative with `/` between its parts; such as `onnx/model.onnx`"
    if any(part in {"", ".", ".."} for part in parts):
        return f"{path!r} has a part that is empty, `.` or `..`; such as `onnx/model.onnx`"
    return "" if path.isprintable() else f"{path!r} has characters that cannot be printed"


def _files_that_are_folders(seen: dict[str, int], field: str) -> dict[str, str]:
    violations = {}
    for path, index in seen.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder in seen:
                violations[f"{field}[{index}].path"] = f"{folder!r} is a file and cannot hold {path!r}"
    return violations


def _check_tensors(tensors: Sequence[TensorDigest]) -> None:
    limits.check_count(len(tensors), "version.tensors", _MAXIMUM_TENSORS)
    seen = set()
    for index, tensor in enumerate(tensors):
        field = f"version.tensors[{index}]"
        if not tensor.name or tensor.name in seen:
            raise InvalidArgument.field(f"{field}.name", f"{tensor.name!r} is empty, or there twice")
        limits.check_word(tensor.name, f"{field}.name", _TENSOR_NAME_CHARACTERS)
        names.checked_digest(tensor.digest, f"{field}.digest")
        seen.add(tensor.name)


def _check_lineage(lineage: Lineage) -> None:
    field = "version.lineage"
    if lineage.job and not _JOB.fullmatch(lineage.job):
        raise InvalidArgument.field(
            f"{field}.job",
            f"{lineage.job[:80]!r} is not a job; such as `jobs/j-…`",
            reason=errors_pb2.REASON_INVALID_NAME,
        )
    if lineage.parent_version:
        names.version_in(lineage.parent_version, f"{field}.parent_version")
    limits.check_count(len(lineage.datasets), f"{field}.datasets", _MAXIMUM_DATASETS)
    for index, dataset in enumerate(lineage.datasets):
        names.dataset_in(dataset.dataset, f"{field}.datasets[{index}].dataset")
        names.blob_in(dataset.blob, f"{field}.datasets[{index}].blob")
    limits.check_not_negative(lineage.step, f"{field}.step")
    for word in ("specification_digest", "environment_fingerprint"):
        if getattr(lineage, word):
            names.checked_digest(getattr(lineage, word), f"{field}.{word}")
    limits.check_word(lineage.code_version, f"{field}.code_version", _WORD_CHARACTERS)
