"""Reads ranges of a file that lies elsewhere: exact, cached in blocks, counted, and never beyond a budget.

Knows nothing of formats, nor where the bytes come from: a `Source` fetches them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Protocol

from octavo.errors import Cancelled, DataLoss, InvalidArgument, ResourceExhausted
from octavo.v1.errors_pb2 import Reason

# Headers are a few KiB; a page of 16 KiB costs one round trip and little beside it.
BLOCK_BYTES: Final = 16 * 1024
# A scan in order soon fetches 1 MiB at a time, which is also the largest chunk the registry sends.
_LARGEST_FETCH_BLOCKS: Final = 64


class Source(Protocol):
    """Bytes that never change, in some place."""

    @property
    def label(self) -> str:
        """What to call it in messages: a path, or a blob's name."""

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""

    def fetch(self, offset: int, length: int) -> bytes:
        """Returns the bytes from `offset`; blocks. Called with ranges inside the size only."""


class Budget:
    """What one call may still fetch, over all its files, and whether its caller still waits."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.fetched_bytes = 0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Makes the next fetch raise Cancelled, in whatever thread it happens."""
        self._cancelled.set()

    def spend(self, length: int) -> None:
        """Counts a fetch before it is made; ResourceExhausted when the call has had enough."""
        if self._cancelled.is_set():
            raise Cancelled(Reason.REASON_CANCELLED, "the caller went away")
        if self.fetched_bytes + length > self.limit_bytes:
            raise ResourceExhausted(
                Reason.REASON_LIMIT_EXCEEDED,
                f"this question needs more than {self.limit_bytes} bytes of the artifact; ask about one file "
                "or fewer tensors at a time",
                limit_bytes=self.limit_bytes,
            )
        self.fetched_bytes += length


class Reader:
    """One file, read by ranges. Keeps at most `cache_bytes` of it; not safe for several threads."""

    def __init__(self, source: Source, budget: Budget, *, cache_bytes: int = 4 * 1024 * 1024) -> None:
        self._source = source
        self._budget = budget
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._block_limit = max(cache_bytes // BLOCK_BYTES, 1)
        self._ahead = 1
        self._next_block = -1

    @property
    def label(self) -> str:
        return self._source.label

    @property
    def size_bytes(self) -> int:
        return self._source.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; InvalidArgument when the file, by its own account, should be longer."""
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise malformed(
                self.label, f"bytes {offset} to {offset + length} are needed, the file has {self.size_bytes}"
            )
        if length > self._block_limit * BLOCK_BYTES // 4:
            return self._fetch(offset, length)
        first, last = offset // BLOCK_BYTES, (offset + max(length, 1) - 1) // BLOCK_BYTES
        parts = [self._block(index, last) for index in range(first, last + 1)] if length else []
        start = offset - first * BLOCK_BYTES
        if len(parts) == 1:
            return parts[0][start : start + length]
        return b"".join(parts)[start : start + length]

    def stream(self, offset: int, length: int, block_bytes: int) -> Iterator[bytes]:
        """The bytes of a range in order, `block_bytes` at a time, past the cache: each is read once."""
        end = offset + length
        while offset < end:
            step = min(block_bytes, end - offset)
            yield self._fetch(offset, step)
            offset += step

    def _block(self, index: int, wanted: int) -> bytes:
        """Block `index` of a read that goes on to block `wanted`; a miss fetches them together."""
        block = self._blocks.get(index)
        if block is not None:
            self._blocks.move_to_end(index)
            return block
        self._ahead = min(self._ahead * 4, _LARGEST_FETCH_BLOCKS) if index == self._next_block else 1
        count = min(max(wanted - index + 1, self._ahead), self._block_limit)
        start = index * BLOCK_BYTES
        data = self._fetch(start, min(count * BLOCK_BYTES, self.size_bytes - start))
        for position in range(0, len(data), BLOCK_BYTES):
            self._keep(index + position // BLOCK_BYTES, data[position : position + BLOCK_BYTES])
        self._next_block = index + count
        return data[:BLOCK_BYTES]

    def _keep(self, index: int, block: bytes) -> None:
        self._blocks[index] = block
        self._blocks.move_to_end(index)
        if len(self._blocks) > self._block_limit:
            self._blocks.popitem(last=False)

    def _fetch(self, offset: int, length: int) -> bytes:
        self._budget.spend(length)
        data = self._source.fetch(offset, length)
        if len(data) != length:
            raise DataLoss(
                Reason.REASON_BLOB_CORRUPT,
                f"{self.label}: {len(data)} bytes arrived where {length} were asked for at byte {offset}",
                offset=offset,
            )
        return data


def malformed(label: str, description: str) -> InvalidArgument:
    """The error for content that breaks the rules of its own format."""
    return InvalidArgument.field(label or "artifact", description, reason=Reason.REASON_MALFORMED_FILE)
