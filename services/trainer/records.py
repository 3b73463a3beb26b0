"""Append-only files of records: what was appended is read back whole, a torn end is never read at all.

A record is 4 bytes of length, 4 bytes of CRC-32 over length and payload (both little-endian), and the payload.
Records are numbered from 1 by their place in the file. Knows nothing of what is in them.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Final

_HEADER: Final = struct.Struct("<II")
# Far above the largest event (a sample of 10,000 characters); a length beyond it can only be damage.
_PAYLOAD_LIMIT_BYTES: Final = 16 << 20
_BLOCK_BYTES: Final = 1 << 20


class RecordReader:
    """Reads the records of a file that another process may be appending to. Holds no file open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._number = 0

    @property
    def number(self) -> int:
        """How many records were read or skipped."""
        return self._number

    @property
    def offset(self) -> int:
        """Where the next record begins, in bytes."""
        return self._offset

    def has_news(self) -> bool:
        """Whether the file goes on beyond what was read: one `stat`. What is there may not be whole yet."""
        try:
            return self._path.stat().st_size > self._offset
        except FileNotFoundError:
            return False

    def skip(self, number: int) -> None:
        """Pass over whole records until `number` of them lie behind, or the file ends."""
        while self._number < number and self._read(number - self._number):
            pass

    def read(self, limit: int = 4096) -> list[bytes]:
        """The next whole records, `limit` at most; none when there is nothing new, or the next is not whole yet."""
        return self._read(limit)

    def _read(self, limit: int) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                block = file.read(_BLOCK_BYTES)
                missing = _missing_bytes(block)
                if missing:
                    block += file.read(missing)
        except FileNotFoundError:
            return []
        records: list[bytes] = []
        position = 0
        while len(records) < limit and (payload := _record(block, position)) is not None:
            records.append(payload)
            position += _HEADER.size + len(payload)
        self._offset += position
        self._number += len(records)
        return records


class RecordWriter:
    """Appends to a file that nobody else writes. Thread-safe.

    Opening cuts off a torn end; what was cut is kept beside it as `<name>.torn`, for whoever wants to know.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        reader = RecordReader(path)
        while reader.read():
            pass
        self._number = reader.number
        self._end = reader.offset
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._cut(reader.offset)
        self._dirty = False

    @property
    def number(self) -> int:
        """How many records the file has."""
        return self._number

    def append(self, payload: bytes) -> int:
        """Add a record, visible to readers at once and durable after `sync`; returns its number.

        ValueError for one too large to be read back. When the disk is full, OSError, and nothing is added.
        """
        if len(payload) > _PAYLOAD_LIMIT_BYTES:
            raise ValueError(f"a record of {len(payload)} bytes; at most {_PAYLOAD_LIMIT_BYTES} are read back")
        header = len(payload).to_bytes(4, "little")
        record = header + zlib.crc32(payload, zlib.crc32(header)).to_bytes(4, "little") + payload
        with self._lock:
            try:
                written = os.write(self._descriptor, record)
                while written < len(record):
                    written += os.write(self._descriptor, record[written:])
            except OSError:
                # Readers stop at a torn record: it would hide all that is still to come, such as why the job failed.
                os.ftruncate(self._descriptor, self._end)
                raise
            self._end += len(record)
            self._number += 1
            self._dirty = True
            return self._number

    def sync(self) -> None:
        """Make everything appended so far durable."""
        with self._lock:
            dirty, self._dirty = self._dirty, False
        if not dirty:
            return
        try:
            os.fdatasync(self._descriptor)
        except OSError:
            self._dirty = True
            raise

    def close(self) -> None:
        """Sync and let go of the file."""
        self.sync()
        os.close(self._descriptor)

    def _cut(self, end: int) -> None:
        size = os.fstat(self._descriptor).st_size
        if size > end:
            torn = os.pread(self._descriptor, min(size - end, _PAYLOAD_LIMIT_BYTES), end)
            self._path.with_name(f"{self._path.name}.torn").write_bytes(torn)
            os.ftruncate(self._descriptor, end)
            os.fsync(self._descriptor)


def _missing_bytes(block: bytes) -> int:
    """How much of the first record lies beyond the block."""
    if len(block) < _HEADER.size:
        return 0
    length = int.from_bytes(block[:4], "little")
    return max(0, _HEADER.size + length - len(block)) if length <= _PAYLOAD_LIMIT_BYTES else 0


def _record(block: bytes, position: int) -> bytes | None:
    """The payload at `position`, or None where no whole record begins."""
    if len(block) - position < _HEADER.size:
        return None
    length, checksum = _HEADER.unpack_from(block, position)
    start = position + _HEADER.size
    payload = block[start : start + length]
    if length > _PAYLOAD_LIMIT_BYTES or len(payload) < length:
        return None
    header = block[position : position + 4]
    return payload if zlib.crc32(payload, zlib.crc32(header)) == checksum else None
