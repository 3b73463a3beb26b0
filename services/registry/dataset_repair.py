"""Mending datasets of rows: which rows stay, copied byte for byte; the rest is left out and counted by why."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from octavo.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from octavo.formats import dataset_rows
from octavo.formats.dataset_rows import Position, Row
from octavo.v1 import errors_pb2
from octavo.v1.datasets_pb2 import Dataset, RepairDatasetRequest
from services.registry.change import canonical_json

_OPTIONS = ("drop_empty_rows", "drop_duplicates", "drop_damaged_rows", "minimum_characters", "maximum_characters")
# 16 bytes each, some 100 with Python's set around them: half a GiB.
_MAXIMUM_DISTINCT_ROWS = 5_000_000


def check(request: RepairDatasetRequest, dataset: Dataset) -> None:
    """Raises InvalidArgument if nothing is asked for, FailedPrecondition for text, which has no rows to leave out."""
    if not any(getattr(request, option) for option in _OPTIONS):
        raise InvalidArgument.fields(dict.fromkeys(_OPTIONS, "is not set; set at least one of these"))
    negative = {name: "is negative; 0 or more" for name in _OPTIONS[3:] if getattr(request, name) < 0}
    if negative:
        raise InvalidArgument.fields(negative)
    if dataset.format == dataset_rows.TEXT:
        raise FailedPrecondition(
            errors_pb2.REASON_DATASET_INVALID,
            f"{dataset.name} is text, whose lines only make sense together; JSONL and CSV have rows",
            dataset=dataset.name,
        )


def copy_kept(source: Path, target: BinaryIO, dataset: Dataset, request: RepairDatasetRequest) -> Counter[str]:
    """Copies the rows that stay from `source` to `target`; returns how many were left out, by why."""
    dropped: Counter[str] = Counter()
    with source.open("rb") as reading, source.open("rb") as copying:
        why = _Judge(request, _required_columns(reading, dataset)).why_dropped
        if dataset.format == dataset_rows.CSV:
            _, begin = dataset_rows.header(reading)
            _copy(copying, target, Position(), begin)
        for row in dataset_rows.rows(reading, dataset.format, Position()):
            if reason := why(row):
                dropped[reason] += 1
            else:
                _copy(copying, target, row.begin, row.end)
    return dropped


class _Judge:
    """Says which rows are left out, and why."""

    def __init__(self, request: RepairDatasetRequest, required: frozenset[str]) -> None:
        self._request = request
        self._required = required
        self._seen: set[bytes] = set()

    def why_dropped(self, row: Row) -> str:
        """`damaged`, `empty`, `short`, `long` or `duplicate`; nothing for a row that stays."""
        request = self._request
        if row.content is None:
            return "damaged" if row.wrong and request.drop_damaged_rows else ""
        if request.drop_empty_rows and any(row.content.get(name) in (None, "") for name in self._required):
            return "empty"
        characters = sum(len(value) for value in row.content.values() if isinstance(value, str))
        if characters < request.minimum_characters:
            return "short"
        if 0 < request.maximum_characters < characters:
            return "long"
        return "duplicate" if request.drop_duplicates and self._is_seen(row.content) else ""

    def _is_seen(self, content: Mapping[str, Any]) -> bool:
        digest = hashlib.blake2b(canonical_json(content).encode(), digest_size=16).digest()
        if digest in self._seen:
            return True
        if len(self._seen) == _MAXIMUM_DISTINCT_ROWS:
            raise ResourceExhausted(
                errors_pb2.REASON_LIMIT_EXCEEDED,
                f"more than {_MAXIMUM_DISTINCT_ROWS} different rows; split the dataset to find duplicates",
            )
        self._seen.add(digest)
        return False


def _required_columns(file: BinaryIO, dataset: Dataset) -> frozenset[str]:
    """The columns that every row has: what all have is meant to be there."""
    required: set[str] | None = None
    for row in dataset_rows.rows(file, dataset.format, Position()):
        if row.content is not None:
            required = set(row.content) if required is None else required & row.content.keys()
    return frozenset(required or ())


def _copy(source: BinaryIO, target: BinaryIO, begin: Position, end: Position) -> None:
    source.seek(begin.offset_bytes)
    remaining = end.offset_bytes - begin.offset_bytes
    read: Callable[[int], bytes] = source.read
    while remaining:
        block = read(min(remaining, 1 << 19))
        target.write(block)
        remaining -= len(block)
