"""Datasets row by row: text by lines, JSONL by objects, CSV by records, each with where it stands in the file.

Reads forward from any row that was shown before; never holds more than one row.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, NoReturn

from octavo.v1.datasets_pb2 import DatasetFormat

TEXT = DatasetFormat.DATASET_FORMAT_TEXT
JSONL = DatasetFormat.DATASET_FORMAT_JSONL
CSV = DatasetFormat.DATASET_FORMAT_CSV

MAXIMUM_ROW_BYTES = 16 << 20
_MAXIMUM_COLUMNS = 1000
_MAXIMUM_DEPTH = 24  # a Struct nests three messages a level, and protobuf parses 100
_BEYOND_DOUBLES = 2**1023
_SNIFFED_BYTES = 65_536
_SNIFFED_RECORDS = 20
_COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class Position(NamedTuple):
    """Where a row begins: in bytes, in lines counted from 1, in rows counted from 0."""

    offset_bytes: int = 0
    line: int = 1
    row: int = 0


class Row(NamedTuple):
    """One row with its place and the place of the next. Without content: blank, or `wrong` says what is."""

    begin: Position
    end: Position
    content: Mapping[str, Any] | None
    wrong: str = ""


class HeaderError(ValueError):
    """The first line of a CSV file is no header."""


def rows(file: BinaryIO, form: DatasetFormat.ValueType, begin: Position) -> Iterator[Row]:
    """The rows from `begin` on. Raises HeaderError if CSV does not begin with the names of its columns."""
    parse = {TEXT: _text, JSONL: _json_object}.get(form)
    columns: list[str] = []
    if form == CSV:
        columns, after_header = header(file)
        begin = max(begin, after_header)
    file.seek(begin.offset_bytes)
    for raw, line_count in _raw_rows(file, joins_quotes=form == CSV):
        content, wrong = _parsed_csv(raw, columns) if parse is None else _parsed(raw, parse)
        is_blank = content is None and not wrong
        end = Position(begin.offset_bytes + raw.size_bytes, begin.line + line_count, begin.row + (0 if is_blank else 1))
        yield Row(begin, end, content, wrong)
        begin = end


def header(file: BinaryIO) -> tuple[list[str], Position]:
    """The columns of a CSV file, and where its rows begin."""
    file.seek(0)
    for raw, line_count in _raw_rows(file, joins_quotes=True):
        fields, wrong = _fields(raw)
        if wrong:
            raise HeaderError(wrong)
        if len(set(fields)) < len(fields) or not all(fields):
            raise HeaderError("the header has columns without a name, or with the same one")
        if len(fields) > _MAXIMUM_COLUMNS:
            raise HeaderError(f"{len(fields)} columns; {_MAXIMUM_COLUMNS} at most")
        return fields, Position(raw.size_bytes, 1 + line_count, 0)
    raise HeaderError("there is no header")


def detect(file: BinaryIO) -> DatasetFormat.ValueType:
    """The format, told by the first 64 KiB: JSONL begins with an object, CSV with names and rows of equal width."""
    file.seek(0)
    beginning = file.read(_SNIFFED_BYTES)
    first = beginning.lstrip().split(b"\n", 1)[0]
    if first.startswith(b"{"):
        try:
            return JSONL if isinstance(json.loads(first), dict) else TEXT
        except (ValueError, RecursionError):
            # An object cut by the end of what was read, or a damaged first line: rows say so better than text does.
            return JSONL if re.match(rb'\{\s*"', first) else TEXT
    return CSV if _looks_like_csv(beginning) else TEXT


class _Raw(NamedTuple):
    data: bytes
    size_bytes: int
    """More than `data` has where a row is too long to be held."""


def _raw_rows(file: BinaryIO, *, joins_quotes: bool) -> Iterator[tuple[_Raw, int]]:
    """Lines, or with `joins_quotes` lines joined while a quote is open, and how many lines each is."""
    while line := file.readline(MAXIMUM_ROW_BYTES + 1):
        line_count, size_bytes = 1, len(line)
        if joins_quotes and line.count(b'"') % 2:
            # Each line is looked at once: an open quote may span millions of them.
            lines = [line]
            while size_bytes <= MAXIMUM_ROW_BYTES and (more := file.readline(MAXIMUM_ROW_BYTES + 1)):
                lines.append(more)
                size_bytes += len(more)
                if more.count(b'"') % 2:
                    break
            line, line_count = b"".join(lines), len(lines)
        if size_bytes > MAXIMUM_ROW_BYTES:
            tail = line
            while tail and not tail.endswith(b"\n"):
                tail = file.readline(MAXIMUM_ROW_BYTES)
                size_bytes += len(tail)
            line = line[: MAXIMUM_ROW_BYTES + 1]
        yield _Raw(line, size_bytes), line_count


def _parsed(raw: _Raw, parse: Any) -> tuple[Mapping[str, Any] | None, str]:
    if parse is not _text and raw.size_bytes > MAXIMUM_ROW_BYTES:
        return None, _too_long(raw)
    try:
        text = raw.data.decode()
    except UnicodeDecodeError:
        if parse is not _text or raw.size_bytes <= MAXIMUM_ROW_BYTES:
            return None, "is not UTF-8"
        text = raw.data.decode(errors="ignore")  # cut inside a character
    content: tuple[Mapping[str, Any] | None, str] = parse(text)
    return content


def _text(line: str) -> tuple[Mapping[str, Any] | None, str]:
    return {"text": line.removesuffix("\n").removesuffix("\r")}, ""


def _json_object(line: str) -> tuple[Mapping[str, Any] | None, str]:
    if not line.strip():
        return None, ""
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except ValueError as error:
        return None, f"is not JSON: {error}"
    except RecursionError:
        return None, f"is nested deeper than {_MAXIMUM_DEPTH}"
    if not isinstance(value, dict):
        return None, 'is not a JSON object; such as {"text": "…"}'
    return (None, wrong) if (wrong := _unfit(value, 0)) else (value, "")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _unfit(value: Any, depth: int) -> str:
    """Why a value cannot travel in a Struct; empty if it can."""
    if depth > _MAXIMUM_DEPTH:
        return f"is nested deeper than {_MAXIMUM_DEPTH}"
    if isinstance(value, dict):
        parts = [*value, *value.values()]
    elif isinstance(value, list):
        parts = value
    elif isinstance(value, str):
        return "" if value.isascii() or _is_encodable(value) else "has half of a surrogate pair"
    elif isinstance(value, int | float):
        return "" if abs(value) < _BEYOND_DOUBLES else "has a number that no double holds"
    else:
        return ""
    return next((wrong for part in parts if (wrong := _unfit(part, depth + 1))), "")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fields(raw: _Raw) -> tuple[list[str], str]:
    if raw.size_bytes > MAXIMUM_ROW_BYTES:
        return [], _too_long(raw)
    try:
        # A byte order mark is not part of the first column's name.
        text = raw.data.decode("utf-8-sig")
        parsed = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except UnicodeDecodeError:
        return [], "is not UTF-8"
    except csv.Error as error:
        return [], f"is not CSV: {error}"
    return (parsed[0] if parsed else []), ""


def _parsed_csv(raw: _Raw, columns: list[str]) -> tuple[Mapping[str, Any] | None, str]:
    if not raw.data.strip():
        return None, ""
    fields, wrong = _fields(raw)
    if wrong:
        return None, wrong
    if len(fields) != len(columns):
        return None, f"has {len(fields)} fields where the header has {len(columns)}"
    return dict(zip(columns, fields, strict=True)), ""


def _looks_like_csv(beginning: bytes) -> bool:
    try:
        text = beginning.rsplit(b"\n", 1)[0].decode("utf-8-sig")
        records = []
        for record in csv.reader(io.StringIO(text, newline=""), strict=True):
            records.append(record)
            if len(records) > _SNIFFED_RECORDS:
                break
    except (UnicodeDecodeError, csv.Error):
        return False
    if len(records) < 2 or len(records[0]) < 2 or len(set(records[0])) < len(records[0]):
        return False
    has_names = all(_COLUMN_NAME.fullmatch(name) for name in records[0])
    return has_names and all(len(record) == len(records[0]) for record in records[1:] if record)


def _too_long(raw: _Raw) -> str:
    return f"has {raw.size_bytes} bytes; {MAXIMUM_ROW_BYTES} at most"
