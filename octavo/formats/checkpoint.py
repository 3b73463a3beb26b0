"""Checkpoints: a job's state at a step as a directory that is either whole or not there.

Written under a temporary name, every file synced, the manifest with sizes and sha256 last, then renamed and
the parent synced; verified when read, with fallback to the one before. Knows nothing of torch, models, jobs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from octavo.errors import DataLoss, NotFound, OctavoError
from octavo.formats.tensor_file import read_header, read_tensor, write_safetensors
from octavo.v1.errors_pb2 import Reason

TENSORS: Final = "state.safetensors"
MANIFEST: Final = "manifest.json"
_FORMAT: Final = "octavo-checkpoint-1"
# A manifest lists one file and a few facts; anything larger is not one of ours.
_MANIFEST_LIMIT_BYTES: Final = 1 << 20
_DIRECTORY: Final = re.compile(r"^step-(\d{10})$")


@dataclass(frozen=True, kw_only=True)
class CheckpointEntry:
    """A checkpoint on disk: `digest` is the `sha256:…` of its manifest, `facts` what its writer noted.

    `state_digest` is that of its tensors alone: the same for two runs that are the same to the last bit.
    """

    path: Path
    step: int
    digest: str
    state_digest: str
    size_bytes: int
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint with its tensors, memory-mapped and read-only."""

    entry: CheckpointEntry
    tensors: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A checkpoint that was passed over, and why."""

    step: int
    description: str


class CheckpointFolder:
    """The checkpoints of one job. One process writes; readers need no lock: what has a name stays as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; whether they are whole is found out by reading."""
        if not self._path.is_dir():
            return []
        return sorted(int(match[1]) for entry in self._path.iterdir() if (match := _DIRECTORY.match(entry.name)))

    def write(self, step: int, tensors: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> CheckpointEntry:
        """Make the checkpoint of `step` durable; one that is there and whole is kept as it is."""
        self._path.mkdir(parents=True, exist_ok=True)
        self._sweep()
        final = self._directory(step)
        if final.exists():
            try:
                return self._verified(step)
            except DataLoss:
                _remove(final)
        partial = self._path / f".{final.name}.partial"
        _require_room(self._path, sum(array.nbytes for array in tensors.values()))
        try:
            partial.mkdir()
            write_safetensors(partial / TENSORS, tensors)
            _write_manifest(partial, step, facts)
            _sync_directory(partial)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # half a checkpoint would keep a full disk full
            raise
        partial.rename(final)
        _sync_directory(self._path)
        return _entry(final, step)

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of `step` with every byte verified; NotFound, or DataLoss where it is damaged."""
        entry = self._verified(step)
        file = entry.path / TENSORS
        try:
            header = read_header(file)
        except OctavoError as error:
            raise _damaged(step, error.message) from error
        tensors = {name: read_tensor(file, tensor) for name, tensor in header.tensors.items()}
        return Checkpoint(entry=entry, tensors=tensors)

    def read_newest(self) -> tuple[Checkpoint | None, list[Damage]]:
        """The newest whole checkpoint, if there is one, and those newer than it that are damaged."""
        damages: list[Damage] = []
        for step in reversed(self.steps()):
            try:
                return self.read(step), damages
            except DataLoss as error:
                damages.append(Damage(step=step, description=error.message))
        return None, damages

    def retain(self, keep_latest: int, keep_steps: Collection[int] = ()) -> list[int]:
        """Remove all but the newest `keep_latest` and those of `keep_steps`; returns the steps removed."""
        obsolete = [step for step in self.steps()[:-keep_latest] if step not in keep_steps]
        for step in obsolete:
            _remove(self._directory(step))
        return obsolete

    def remove_after(self, step: int) -> list[int]:
        """Remove the checkpoints of later steps; returns the steps removed."""
        later = [one for one in self.steps() if one > step]
        for one in later:
            _remove(self._directory(one))
        return later

    def _directory(self, step: int) -> Path:
        return self._path / f"step-{step:010d}"

    def _verified(self, step: int) -> CheckpointEntry:
        directory = self._directory(step)
        if not directory.is_dir():
            raise NotFound(Reason.REASON_CHECKPOINT_NOT_FOUND, f"no checkpoint of step {step} is kept", step=step)
        for listed in _manifest(directory, step)[0]["files"]:
            name, size_bytes = listed["path"], listed["size_bytes"]
            file = directory / name
            if not file.is_file() or file.stat().st_size != size_bytes:
                raise _damaged(step, f"{name} is missing or not {size_bytes} bytes long")
            if _digest(file) != listed["sha256"]:
                raise _damaged(step, f"{name} does not have the digest in its manifest")
        return _entry(directory, step)

    def _sweep(self) -> None:
        """Clear what an interrupted write or removal left behind."""
        for entry in self._path.iterdir():
            if entry.name.startswith(".step-"):
                shutil.rmtree(entry)


def _require_room(directory: Path, size_bytes: int) -> None:
    """OSError (ENOSPC) before anything is begun that would fill the disk for everybody else."""
    if shutil.disk_usage(directory).free < size_bytes:
        raise OSError(errno.ENOSPC, f"a checkpoint of {size_bytes} bytes does not fit", str(directory))


def _write_manifest(directory: Path, step: int, facts: Mapping[str, Any]) -> None:
    file = directory / TENSORS
    manifest = {
        "format": _FORMAT,
        "step": step,
        "files": [{"path": TENSORS, "size_bytes": file.stat().st_size, "sha256": _digest(file)}],
        "facts": dict(facts),
    }
    sealed = {"manifest": manifest, "sha256": hashlib.sha256(_canonical(manifest)).hexdigest()}
    with (directory / MANIFEST).open("xb") as stream:
        stream.write(json.dumps(sealed, sort_keys=True, indent=1).encode())
        stream.flush()
        os.fsync(stream.fileno())


def _canonical(manifest: Any) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def _manifest(directory: Path, step: int) -> tuple[dict[str, Any], str, int]:
    """The manifest, the sha256 that seals it, and the size of its file."""
    try:
        with (directory / MANIFEST).open("rb") as stream:
            text = stream.read(_MANIFEST_LIMIT_BYTES + 1)
        sealed = json.loads(text)
    except FileNotFoundError as error:
        raise _damaged(step, "it has no manifest") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(step, "its manifest is not JSON") from error
    manifest = sealed.get("manifest") if isinstance(sealed, dict) else None
    if len(text) > _MANIFEST_LIMIT_BYTES or not isinstance(manifest, dict):
        raise _damaged(step, "its manifest is not a JSON object of at most 1 MiB")
    digest = hashlib.sha256(_canonical(manifest)).hexdigest()
    if sealed.get("sha256") != digest:
        raise _damaged(step, "its manifest does not have the digest that seals it")
    if manifest.get("format") != _FORMAT or manifest.get("step") != step:
        raise _damaged(step, f"its manifest is not one of step {step} in the format {_FORMAT}")
    return manifest, digest, len(text)


def _entry(directory: Path, step: int) -> CheckpointEntry:
    manifest, digest, manifest_bytes = _manifest(directory, step)
    return CheckpointEntry(
        path=directory,
        step=step,
        digest=f"sha256:{digest}",
        state_digest=next(f"sha256:{file['sha256']}" for file in manifest["files"] if file["path"] == TENSORS),
        size_bytes=manifest_bytes + sum(file["size_bytes"] for file in manifest["files"]),
        facts=manifest["facts"],
    )


def _damaged(step: int, description: str) -> DataLoss:
    return DataLoss(
        Reason.REASON_CHECKPOINT_CORRUPT,
        f"the checkpoint of step {step} is damaged: {description}",
        step=step,
    )


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove(directory: Path) -> None:
    """Take the name away first: an interrupted removal leaves nothing that looks like a checkpoint."""
    doomed = directory.with_name(f".{directory.name}.removed")
    if doomed.exists():
        shutil.rmtree(doomed)
    directory.rename(doomed)
    shutil.rmtree(doomed)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def arrays_equal(first: Mapping[str, npt.NDArray[Any]], second: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether two states are the same to the last bit, NaN included: names, dtypes, shapes and bytes."""
    return first.keys() == second.keys() and all(
        array.dtype == second[name].dtype
        and array.shape == second[name].shape
        and np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(second[name]).tobytes()
        for name, array in first.items()
    )
