"""What a file would be as a dataset: counted and checked in two passes, in bounded memory.

The first pass is over characters (what every format is made of), the second over rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from octavo.formats import dataset_rows
from octavo.formats.dataset_rows import HeaderError, Position
from octavo.v1.datasets_pb2 import (
    DatasetFinding,
    DatasetFindingSeverity,
    DatasetFormat,
    DatasetRow,
    DatasetStatistics,
)

MAXIMUM_FINDINGS = 100
MAXIMUM_SHOWN_CHARACTERS = 65_536

_INFO = DatasetFindingSeverity.DATASET_FINDING_SEVERITY_INFO
_WARNING = DatasetFindingSeverity.DATASET_FINDING_SEVERITY_WARNING
_ERROR = DatasetFindingSeverity.DATASET_FINDING_SEVERITY_ERROR

_BLOCK_BYTES = 1 << 20
_CODE_POINTS = 0x110000
_MAXIMUM_COLUMNS = 1000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass
class Survey:
    """What was found."""

    form: DatasetFormat.ValueType
    statistics: DatasetStatistics
    rows: list[DatasetRow] = field(default_factory=list)
    findings: list[DatasetFinding] = field(default_factory=list)

    @property
    def errors(self) -> list[DatasetFinding]:
        """The findings because of which it cannot be a dataset."""
        return [finding for finding in self.findings if finding.severity == _ERROR]

    def note(self, severity: DatasetFindingSeverity.ValueType, where: Position, description: str) -> bool:
        """Adds a finding; false once there are as many as are kept."""
        if len(self.findings) < MAXIMUM_FINDINGS:
            self.findings.append(
                DatasetFinding(
                    severity=severity, line=where.line, offset_bytes=where.offset_bytes, description=description
                )
            )
        return len(self.findings) < MAXIMUM_FINDINGS


def survey(path: Path, form: DatasetFormat.ValueType, shown_rows: int) -> Survey:
    """Counts and checks the file; `shown_rows` of its rows come along. An unspecified format is told by the content."""
    with path.open("rb") as file:
        form = form or dataset_rows.detect(file)
        found = Survey(form, DatasetStatistics(size_bytes=path.stat().st_size))
        if not found.statistics.size_bytes:
            found.note(_ERROR, Position(line=0), "is empty; a dataset has at least one character")
            return found
        _survey_characters(file, found)
        _survey_rows(file, found, shown_rows)
    if not found.statistics.rows and not found.errors:
        found.note(_ERROR, Position(line=0), "has no rows; a dataset has at least one")
    return found


def shown(index: int, content: Mapping[str, Any]) -> DatasetRow:
    """A row as it is answered; a text line longer than 65,536 characters is cut."""
    row = DatasetRow(index=index)
    text = content.get("text")
    if isinstance(text, str) and len(text) > MAXIMUM_SHOWN_CHARACTERS and len(content) == 1:
        content = {"text": text[:MAXIMUM_SHOWN_CHARACTERS] + "…"}
    row.content.update(content)
    return row


class _Characters:
    """Counts characters and lines of bytes that come in blocks."""

    def __init__(self, found: Survey) -> None:
        self._found = found
        self._seen = np.zeros(_CODE_POINTS, dtype=bool)
        self._carry = b""
        self._at = Position()
        self.newlines = 0
        self.carriage_returns = 0

    def add(self, block: bytes, *, is_last: bool) -> bool:
        """Counts a block; false once there is no sense in going on."""
        data = self._carry + block
        while data:
            try:
                self._count(data, data.decode())
                data = b""
            except UnicodeDecodeError as error:
                self._count(data[: error.start], data[: error.start].decode())
                data = data[error.start :]
                if not is_last and error.end == error.start + len(data) and len(data) < 4:
                    break
                if not self._note_bad_byte(data[0]):
                    return False
                data = data[error.end - error.start :]
                self._at = self._at._replace(offset_bytes=self._at.offset_bytes + error.end - error.start)
        self._carry = data
        return True

    def finish(self) -> None:
        """Writes what was counted into the statistics."""
        self._found.statistics.symbols = int(self._seen.sum())

    def _count(self, data: bytes, text: str) -> None:
        self._found.statistics.characters += len(text)
        if text.isascii():
            self._seen[:128] |= np.bincount(np.frombuffer(data, np.uint8), minlength=128)[:128] > 0
        else:
            self._seen[np.frombuffer(text.encode("utf-32-le"), np.uint32)] = True
        newlines = data.count(b"\n")
        self.newlines += newlines
        self.carriage_returns += data.count(b"\r\n")
        self._at = Position(self._at.offset_bytes + len(data), self._at.line + newlines)

    def _note_bad_byte(self, byte: int) -> bool:
        return self._found.note(
            _ERROR,
            self._at,
            f"byte 0x{byte:02x} at offset {self._at.offset_bytes} is not UTF-8; save the file as UTF-8",
        )


def _survey_characters(file: BinaryIO, found: Survey) -> None:
    file.seek(0)
    characters = _Characters(found)
    size_bytes, position, last_byte, is_blank = found.statistics.size_bytes, 0, b"", True
    while block := file.read(_BLOCK_BYTES):
        if position == 0 and block.startswith(_BYTE_ORDER_MARK):
            found.note(_WARNING, Position(), "begins with a byte order mark, which is a symbol to learn; remove it")
        position += len(block)
        last_byte = block[-1:]
        is_blank = is_blank and not block.strip()
        if not characters.add(block, is_last=position >= size_bytes):
            break
    characters.finish()
    found.statistics.rows = characters.newlines + (last_byte != b"\n")
    if is_blank:
        found.note(_ERROR, Position(line=0), "is nothing but space; a dataset has text or rows")
    if found.form == dataset_rows.TEXT and characters.carriage_returns:
        found.note(
            _WARNING,
            Position(line=0),
            f"{characters.carriage_returns} lines end with CR LF, and CR is a symbol to learn; LF alone is usual",
        )


def _survey_rows(file: BinaryIO, found: Survey, shown_rows: int) -> None:
    columns = _Columns(found)
    is_text = found.form == dataset_rows.TEXT
    if not is_text:
        found.statistics.rows = 0
    try:
        for row in dataset_rows.rows(file, found.form, Position()):
            if row.content is not None and len(found.rows) < shown_rows:
                found.rows.append(shown(row.begin.row, row.content))
            if is_text and len(found.rows) >= shown_rows:
                return
            if not is_text and not columns.add(row):
                break
    except HeaderError as error:
        found.note(_ERROR, Position(), f"{error}; the first line names the columns")
    if not is_text:
        columns.finish()


@dataclass
class _Column:
    """What was seen of one column."""

    kind: str = ""
    present: int = 0
    empty: int = 0
    first_empty: Position | None = None


class _Columns:
    """Counts rows and what their columns hold."""

    def __init__(self, found: Survey) -> None:
        self._found = found
        self._columns: dict[str, _Column] = {}
        self._blank_lines = 0

    def add(self, row: dataset_rows.Row) -> bool:
        """Counts a row; false once there is no sense in going on."""
        if row.content is None:
            self._blank_lines += not row.wrong
            return not row.wrong or self._found.note(_ERROR, row.begin, f"the row {row.wrong}")
        self._found.statistics.rows += 1
        for name, value in row.content.items():
            column = self._columns.get(name)
            if column is None:
                if len(self._columns) == _MAXIMUM_COLUMNS:
                    self._found.note(_ERROR, row.begin, f"more than {_MAXIMUM_COLUMNS} columns; rows share few")
                    return False
                column = self._columns[name] = _Column()
            self._look_at(name, column, value, row.begin)
        return True

    def finish(self) -> None:
        """Writes the columns into the statistics, and what is wrong with them into the findings."""
        statistics = self._found.statistics
        statistics.columns.extend(self._columns)
        if self._blank_lines:
            self._found.note(_INFO, Position(line=0), f"{self._blank_lines} blank lines are skipped")
        for name, column in self._columns.items():
            if missing := statistics.rows - column.present:
                self._found.note(_WARNING, Position(line=0), f"column {name!r} is missing in {missing} rows")
            if column.first_empty is not None:
                self._found.note(
                    _WARNING, column.first_empty, f"column {name!r} is empty in {column.empty} rows; this is the first"
                )

    def _look_at(self, name: str, column: _Column, value: Any, where: Position) -> None:
        column.present += 1
        if value is None or value == "":
            column.empty += 1
            column.first_empty = column.first_empty or where
            return
        kind = _kind(value)
        if column.kind and column.kind != kind != "mixed":
            if column.kind != "mixed":
                self._found.note(
                    _WARNING, where, f"column {name!r} holds {kind} here and {column.kind} before; one kind is best"
                )
            kind = "mixed"
        column.kind = kind


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object"
