"""The files of versions on this machine: fetched by digest, verified, and there whole or not at all.

Several servers may share a root. A lock file for each version says who uses its files, many at a time, or removes
them, alone; another one who fetches them. The locks are the kernel's: they end with the process that holds them.
"""

import asyncio
import errno
import fcntl
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

from octavo.errors import DataLoss, ResourceExhausted
from octavo.formats.manifest import FileEntry, Manifest
from octavo.v1.errors_pb2 import Reason
from octavo.v1.registry_pb2 import Version

Fetch = Callable[[str, Path], Awaitable[object]]
"""Writes a blob, `blobs/sha256:…`, to a path, verified; goes on where an earlier attempt broke off."""

LOCK_INTERVAL_S = 0.05
"""How often a lock that somebody else holds is asked for again, in seconds."""
FETCHES_AT_ONCE = 4
"""Files of one version that are fetched at the same time."""


class Lease:
    """Keeps a version's files in `directory` where they are, whichever server cleans up, until it is closed."""

    def __init__(self, directory: Path, lock: BinaryIO) -> None:
        self.directory = directory
        self._lock = lock

    def close(self) -> None:
        """Lets the files go. May be called twice."""
        self._lock.close()


class BundleCache:
    """One directory for each manifest digest, below `root`."""

    def __init__(self, root: Path, fetch: Fetch) -> None:
        self._root = root
        self._locks = root.with_name(f"{root.name}.locks")
        self._fetch = fetch

    async def lease(self, version: Version) -> Lease:
        """The version's files as a directory, every byte verified, kept until the lease is closed.

        Raises OctavoError where they cannot be had: ResourceExhausted where the disk has no room for them.
        """
        files = (
            FileEntry(path=file.path, digest=file.blob.removeprefix("blobs/"), size_bytes=file.size_bytes)
            for file in version.files
        )
        # Valid by construction: no path of it leads out of the directory.
        manifest = Manifest(files=tuple(sorted(files, key=lambda entry: entry.path)), tensors={})
        digest = version.manifest_digest.removeprefix("sha256:")
        try:
            return await self._leased(manifest, digest)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            await asyncio.to_thread(self.sweep)
            raise _disk_full(self._root, manifest, error) from error

    def sweep(self) -> None:
        """Removes the files of versions that no server uses, and what broken downloads left."""
        for path in self._root.iterdir() if self._root.is_dir() else ():
            lock_path = self._locks / path.name.removeprefix(".")
            if lock := _try_lock(lock_path, fcntl.LOCK_EX):
                with lock:
                    shutil.rmtree(path, ignore_errors=True)
                    lock_path.unlink(missing_ok=True)

    async def _leased(self, manifest: Manifest, digest: str) -> Lease:
        target = self._root / digest
        lease = Lease(target, await _locked(self._locks / digest, fcntl.LOCK_SH))
        try:
            if not await asyncio.to_thread(_is_intact, manifest, target):
                await self._fetch_alone(manifest, target)
        except BaseException:
            lease.close()
            raise
        return lease

    async def _fetch_alone(self, manifest: Manifest, target: Path) -> None:
        """Downloads, unless another server that shares the root did so just now."""
        lock_path = self._locks / f"{target.name}.fetch"
        with await _locked(lock_path, fcntl.LOCK_EX):
            if not await asyncio.to_thread(_is_intact, manifest, target):
                await self._download(manifest, target)
            lock_path.unlink(missing_ok=True)

    async def _download(self, manifest: Manifest, target: Path) -> None:
        staging = self._root / f".{target.name}"
        room = asyncio.Semaphore(FETCHES_AT_ONCE)

        async def fetch(entry: FileEntry) -> None:
            path = staging / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            async with room:
                await self._fetch(f"blobs/{entry.digest}", path)

        # All of them end before one failure is told: none writes on behind a lock that is gone.
        ends = await asyncio.gather(*map(fetch, manifest.files), return_exceptions=True)
        for failure in ends:
            if isinstance(failure, BaseException):
                raise failure
        await asyncio.to_thread(manifest.verify, staging)
        await asyncio.to_thread(_replace, staging, target)


async def _locked(path: Path, kind: int) -> BinaryIO:
    """The lock file, locked; it stays so until it is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while not (file := _try_lock(path, kind)):  # noqa: ASYNC110 - another process sets no event here
        await asyncio.sleep(LOCK_INTERVAL_S)
    return file


def _try_lock(path: Path, kind: int) -> BinaryIO | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        # Whoever held it before may have removed it: a lock on a file that nobody finds any more locks nothing.
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


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


def _disk_full(root: Path, manifest: Manifest, error: OSError) -> ResourceExhausted:
    return ResourceExhausted(
        Reason.REASON_BUNDLE_CACHE_FULL,
        f"no room for {manifest.size_bytes} bytes of files on the disk of {root}, which has "
        f"{shutil.disk_usage(root).free} bytes left: {error.strerror}; make room there, it is tried again",
    )
