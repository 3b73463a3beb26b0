"""The files of versions on this machine: fetched by digest, verified, and there whole or not at all."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from octavo.errors import DataLoss
from octavo.formats.manifest import FileEntry, Manifest
from octavo.v1.registry_pb2 import Version

Fetch = Callable[[str, Path], Awaitable[object]]
"""Writes a blob, `blobs/sha256:…`, to a path, verified; goes on where an earlier attempt broke off."""


class BundleCache:
    """One directory for each manifest digest, below `root`."""

    def __init__(self, root: Path, fetch: Fetch) -> None:
        self._root = root
        self._fetch = fetch

    async def directory(self, version: Version) -> Path:
        """The version's files as a directory, every byte verified. Raises OctavoError where they cannot be had."""
        files = (
            FileEntry(path=file.path, digest=file.blob.removeprefix("blobs/"), size_bytes=file.size_bytes)
            for file in version.files
        )
        # Valid by construction: no path of it leads out of the directory.
        manifest = Manifest(files=tuple(sorted(files, key=lambda entry: entry.path)), tensors={})
        target = self._root / version.manifest_digest.removeprefix("sha256:")
        if not await asyncio.to_thread(_is_intact, manifest, target):
            await self._download(manifest, target)
        return target

    def keep_only(self, directories: set[Path]) -> None:
        """Removes the files of all other versions, and what broken downloads left."""
        for path in self._root.iterdir() if self._root.is_dir() else ():
            if path not in directories:
                shutil.rmtree(path, ignore_errors=True)

    async def _download(self, manifest: Manifest, target: Path) -> None:
        staging = self._root / f".{target.name}"
        for entry in manifest.files:
            path = staging / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            await self._fetch(f"blobs/{entry.digest}", path)
        await asyncio.to_thread(manifest.verify, staging)
        await asyncio.to_thread(_replace, staging, target)


def _is_intact(manifest: Manifest, directory: Path) -> bool:
    if not directory.is_dir():
        return False
    try:
        manifest.verify(directory)
    except DataLoss:
        return False
    return True


def _replace(staging: Path, target: Path) -> None:
    """Renames; a damaged directory in the way is removed first."""
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
