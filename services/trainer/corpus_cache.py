"""The corpora of a trainer: made once, shared by its jobs, bounded in size; one that a job reads is never removed.

A corpus is made under a lock, so that two jobs that want the same one make it once, and takes its name when it is
whole. A job that reads one holds a shared lock on its facts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from octavo.errors import OctavoError
from services.trainer.corpus import FACTS, Corpus, CorpusSpec
from services.trainer.corpus_maker import Say, make_corpus

_LOCKS: Final = ".locks"
_WAIT_S: Final = 0.1
_WAITS_SAID: Final = 10


class CorpusCache:
    """Corpora in a directory, together of at most `limit_bytes` as long as no more are in use."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes

    def prepare(self, spec: CorpusSpec, download: Callable[[str, Path], object], say: Say) -> Corpus:
        """The corpus of `spec`, made if it is not there yet, or not as it was made.

        `download` fetches a blob to a path, verified; `say` hears what is being done, and may raise to stop it.
        FailedPrecondition says what is wrong with the content.
        """
        final = self._directory / spec.key
        (self._directory / _LOCKS).mkdir(parents=True, exist_ok=True)
        with self._making(spec.key, say):
            corpus = _opened(final)
            if corpus is None:
                self._make(final, spec, download, say)
                corpus = _opened(final)
            if corpus is None:
                raise OSError(f"{final} cannot be read back as it was written")
        self._shrink(final)
        return corpus

    def _make(self, final: Path, spec: CorpusSpec, download: Callable[[str, Path], object], say: Say) -> None:
        partial = self._directory / f".{spec.key}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            say("fetching the dataset")
            content = partial / "content"
            download(spec.blob, content)
            made = partial / "corpus"
            made.mkdir()
            make_corpus(content, made, spec, say)
            _sync(made)
            # A damaged one that jobs still read stays theirs: what they have mapped outlives its name.
            shutil.rmtree(final, ignore_errors=True)
            made.rename(final)
            _sync_directory(self._directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @contextmanager
    def _making(self, key: str, say: Say) -> Iterator[None]:
        """Alone under this key, in all processes; waits for another that is at it."""
        with (self._directory / _LOCKS / key).open("wb") as lock:
            waits = 0
            while not _try_lock(lock.fileno()):
                if waits % _WAITS_SAID == 0:
                    say("waiting for another job that makes the same tokens")
                waits += 1
                time.sleep(_WAIT_S)
            yield

    def _shrink(self, kept: Path) -> None:
        """Remove what a lost process left unfinished, then the corpora that were not used for longest."""
        corpora = []
        for path in self._directory.iterdir():
            if path.name == _LOCKS or path == kept:
                continue
            if path.name.startswith("."):
                self._remove(path, path.name[1:], _is_idle)
            else:
                with suppress(OSError):
                    corpora.append(((path / FACTS).stat().st_mtime_ns, path))
        total = _size_bytes(kept) + sum(_size_bytes(path) for _, path in corpora)
        for _, path in sorted(corpora):
            if total <= self._limit_bytes:
                return
            size_bytes = _size_bytes(path)
            if self._remove(path, path.name, _is_unread):
                total -= size_bytes

    def _remove(self, path: Path, key: str, may_go: Callable[[Path], bool]) -> bool:
        with (self._directory / _LOCKS / key).open("wb") as lock:
            if not _try_lock(lock.fileno()) or not may_go(path):
                return False
            shutil.rmtree(path, ignore_errors=True)
            return True


class _Hold:
    """A shared lock on the facts of a corpus for as long as this object lives; OSError where there are none."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory / FACTS, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def __del__(self) -> None:
        with suppress(AttributeError):
            os.close(self._descriptor)


def _opened(directory: Path) -> Corpus | None:
    """The corpus of a directory, held; None where there is none, or a damaged one."""
    try:
        corpus = Corpus.open(directory, _Hold(directory))
        os.utime(directory / FACTS)  # the time of its last use
    except (OSError, ValueError, TypeError, OctavoError):
        return None
    return corpus


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_idle(path: Path) -> bool:
    """What is unfinished belongs to whoever has its key."""
    return path.is_dir()


def _is_unread(path: Path) -> bool:
    try:
        with (path / FACTS).open("rb") as facts:
            return _try_lock(facts.fileno())
    except OSError:
        return False


def _size_bytes(directory: Path) -> int:
    with suppress(OSError):
        return sum(file.stat().st_size for file in directory.iterdir())
    return 0


def _sync(directory: Path) -> None:
    for file in directory.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
