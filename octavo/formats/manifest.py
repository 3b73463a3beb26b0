"""What a bundle consists of: the sha256 and size of every file and the sha256 of every tensor, as canonical JSON.

Knows nothing of what the files mean, except that model.safetensors holds the tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self

from octavo.errors import DataLoss, InvalidArgument
from octavo.formats.tensor_file import TensorEntry, read_header
from octavo.v1.errors_pb2 import Reason

WEIGHTS_FILE: Final = "model.safetensors"
PATH_LIMIT_CHARACTERS: Final = 255
FILE_COUNT_LIMIT: Final = 1_000
TENSOR_COUNT_LIMIT: Final = 1_000_000

_CHUNK_BYTES: Final = 1 << 20
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file: `path` is relative with `/`, `digest` is `sha256:…` of its bytes."""

    path: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Files in order of their paths, and the digest of each tensor by name; valid by construction."""

    files: tuple[FileEntry, ...]
    tensors: Mapping[str, str]

    def __post_init__(self) -> None:
        wrong = _violations(self)
        if wrong:
            raise InvalidArgument.fields(wrong, reason=Reason.REASON_INVALID_BUNDLE)

    @classmethod
    def of_directory(cls, directory: Path) -> Self:
        """Digest every file below `directory`; reads each byte once more for the tensors."""
        files = []
        for path in sorted(directory.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise InvalidArgument.field(
                    path.name, "a bundle holds plain files only", reason=Reason.REASON_INVALID_BUNDLE
                )
            if path.is_file():
                name = path.relative_to(directory).as_posix()
                files.append(FileEntry(path=name, digest=digest_file(path), size_bytes=path.stat().st_size))
        weights = directory / WEIGHTS_FILE
        tensors = digest_tensors(weights) if weights.is_file() else {}
        return cls(files=tuple(sorted(files, key=lambda entry: entry.path)), tensors=tensors)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """The way back from `to_json`; InvalidArgument for anything else."""
        try:
            value = json.loads(text)
            files = tuple(FileEntry(**row) for row in value["files"])
            return cls(files=files, tensors=dict(value["tensors"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidArgument.field(
                "manifest", f"it is not a manifest: {error}", reason=Reason.REASON_INVALID_BUNDLE
            ) from error

    def to_json(self) -> bytes:
        """Canonical: equal manifests are equal bytes."""
        files = [{"digest": entry.digest, "path": entry.path, "size_bytes": entry.size_bytes} for entry in self.files]
        return canonical_json({"files": files, "tensors": dict(self.tensors)})

    @property
    def digest(self) -> str:
        """`sha256:…` of the canonical JSON: the name of these contents, and what a signature would sign."""
        return digest_bytes(self.to_json())

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)

    def verify(self, directory: Path) -> None:
        """Read every file listed; DataLoss names all that are missing, cut short or altered.

        Files that the manifest does not list are no concern of this.
        """
        wrong = {entry.path: text for entry in self.files if (text := _difference(directory, entry))}
        if not wrong:
            return
        shown = "; ".join(f"{path}: {text}" for path, text in list(wrong.items())[:8])
        raise DataLoss(
            Reason.REASON_MANIFEST_MISMATCH,
            f"{len(wrong)} of {len(self.files)} files differ from their manifest: {shown}; fetch them again",
            files=",".join(list(wrong)[:8]),
        )


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8, no NaN: one text for one value."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return text.encode()


def digest_bytes(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_file(path: Path) -> str:
    """`sha256:…` of a file of any size, in constant memory."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def digest_tensors(path: Path) -> dict[str, str]:
    """`sha256:…` of the bytes of every tensor of a safetensors file, by name."""
    header = read_header(path)
    return {name: _digest_range(path, entry) for name, entry in sorted(header.tensors.items())}


def _digest_range(path: Path, entry: TensorEntry) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(entry.offset)
        left = entry.size_bytes
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
    return f"sha256:{digest.hexdigest()}"


def _difference(directory: Path, entry: FileEntry) -> str | None:
    path = directory / entry.path
    if not path.is_file():
        return "is missing"
    size_bytes = path.stat().st_size
    if size_bytes != entry.size_bytes:
        return f"has {size_bytes} bytes instead of {entry.size_bytes}"
    digest = digest_file(path)
    return None if digest == entry.digest else f"has {digest} instead of {entry.digest}"


def _violations(manifest: Manifest) -> dict[str, str]:
    if len(manifest.files) > FILE_COUNT_LIMIT or len(manifest.tensors) > TENSOR_COUNT_LIMIT:
        return {"files": f"more than {FILE_COUNT_LIMIT} files or {TENSOR_COUNT_LIMIT} tensors are no bundle"}
    wrong: dict[str, str] = {}
    paths = [entry.path for entry in manifest.files]
    if paths != sorted(set(map(str, paths))):
        wrong["files"] = "paths must be unique and sorted"
    for index, entry in enumerate(manifest.files):
        if not _is_bundle_path(entry.path):
            wrong[f"files[{index}].path"] = f"{entry.path!r} is not a relative path without '..'"
        if not _is_digest(entry.digest):
            wrong[f"files[{index}].digest"] = f"{entry.digest!r} is not sha256: and 64 hexadecimal digits"
        if type(entry.size_bytes) is not int or entry.size_bytes < 0:
            wrong[f"files[{index}].size_bytes"] = f"{entry.size_bytes!r} is not a size"
    for name, digest in manifest.tensors.items():
        if not _is_digest(digest):
            wrong[f"tensors[{name!r}]"] = f"{digest!r} is not sha256: and 64 hexadecimal digits"
    return wrong


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_bundle_path(value: object) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= PATH_LIMIT_CHARACTERS:
        return False
    parts = PurePosixPath(value).parts
    is_plain = "\\" not in value and "\0" not in value and str(PurePosixPath(value)) == value
    return is_plain and not value.startswith("/") and ".." not in parts and value != "."
