"""Surveys against the obvious, slow way to count, on any bytes."""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.formats import dataset_rows
from octavo.formats.dataset_rows import CSV, JSONL, TEXT, Position
from services.registry import dataset_survey

PIECES = st.sampled_from(["a", "ä", "世", "😀", "\n", "\r\n", " ", "\x00", '{"a": 1}', '"', ","])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def surveyed(content: bytes, form: int, shown_rows: int = 0) -> dataset_survey.Survey:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "content"
        path.write_bytes(content)
        return dataset_survey.survey(path, form, shown_rows)


def first_bad_byte(content: bytes) -> int | None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


@settings(deadline=None, max_examples=50)
@given(st.lists(PIECES, min_size=1, max_size=60).map("".join), st.integers(1, 7))
def test_text_is_counted_right_whatever_the_blocks(text: str, block_bytes: int) -> None:
    saved = dataset_survey._BLOCK_BYTES
    dataset_survey._BLOCK_BYTES = block_bytes
    try:
        counted = surveyed(text.encode(), TEXT).statistics
    finally:
        dataset_survey._BLOCK_BYTES = saved
    assert counted.characters == len(text)
    assert counted.symbols == len(set(text))
    assert counted.rows == len(text.split("\n")) - text.endswith("\n")


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=1, max_size=60), st.integers(1, 7))
def test_the_first_byte_that_is_not_utf_8_is_found_whatever_the_blocks(content: bytes, block_bytes: int) -> None:
    saved = dataset_survey._BLOCK_BYTES
    dataset_survey._BLOCK_BYTES = block_bytes
    try:
        found = surveyed(content, TEXT)
    finally:
        dataset_survey._BLOCK_BYTES = saved
    bad = [finding for finding in found.errors if "not UTF-8" in finding.description]
    begin = first_bad_byte(content)
    places = [] if begin is None else [(begin, content[:begin].count(b"\n") + 1)]
    assert [(finding.offset_bytes, finding.line) for finding in bad[:1]] == places


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200), st.sampled_from([0, TEXT, JSONL, CSV]))
def test_any_bytes_are_surveyed_without_a_defect(content: bytes, form: int) -> None:
    found = surveyed(content, form, 10)
    assert found.statistics.size_bytes == len(content)
    assert len(found.findings) <= dataset_survey.MAXIMUM_FINDINGS


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=4), min_size=1, max_size=10))
def test_every_row_of_json_comes_back_from_where_it_stands(objects: list[dict[str, object]]) -> None:
    content = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in objects).encode()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "content"
        path.write_bytes(content)
        with path.open("rb") as file:
            found = list(dataset_rows.rows(file, JSONL, Position()))
            assert [row.content for row in found] == objects
            for row in found:
                assert next(dataset_rows.rows(file, JSONL, row.begin)) == row
                assert json.loads(content[row.begin.offset_bytes : row.end.offset_bytes]) == row.content


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), min_size=1, max_size=8))
def test_every_record_of_csv_comes_back_from_where_it_stands(records: list[tuple[str, str]]) -> None:
    quoted = ['"' + field.replace('"', '""') + '"' for record in records for field in record]
    lines = [",".join(quoted[index : index + 2]) for index in range(0, len(quoted), 2)]
    content = ("a,b\n" + "\n".join(lines)).encode()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "content"
        path.write_bytes(content)
        with path.open("rb") as file:
            found = list(dataset_rows.rows(file, CSV, Position()))
            assert [tuple(row.content.values()) for row in found if row.content] == records
            for row in found:
                assert next(dataset_rows.rows(file, CSV, row.begin)) == row


def test_a_row_too_long_to_hold_is_skipped_with_its_place() -> None:
    long = b'{"a":"' + b"x" * dataset_rows.MAXIMUM_ROW_BYTES + b'"}\n'
    found = surveyed(b'{"a":"1"}\n' + long + b'{"a":"2"}\n', JSONL, 10)
    assert found.statistics.rows == 2
    assert [(error.line, error.offset_bytes) for error in found.errors] == [(2, 10)]
    assert "at most" in found.errors[0].description


def test_a_quote_that_is_never_closed_costs_time_in_proportion() -> None:
    started_s = time.perf_counter()
    found = surveyed(b'a,b\n1,"' + b"\n" * 2_000_000, CSV, 10)
    # Looking at all lines again for each line would take minutes; looking at each once takes 0.2 s.
    assert time.perf_counter() - started_s < 20
    assert [error.line for error in found.errors] == [2]


def test_columns_that_differ_are_told() -> None:
    content = b'{"a":"x","b":1}\n{"a":"","b":"two"}\n{"b":3}\n'
    told = [finding.description for finding in surveyed(content, JSONL).findings]
    assert any("column 'b' holds text here and a number before" in description for description in told)
    assert any("column 'a' is missing in 1 rows" in description for description in told)
    assert any("column 'a' is empty in 1 rows" in description for description in told)


def test_a_byte_order_mark_and_windows_line_ends_are_told() -> None:
    told = [finding.description for finding in surveyed(b"\xef\xbb\xbfa\r\nb\r\n", TEXT).findings]
    assert any("byte order mark" in description for description in told)
    assert any("2 lines end with CR LF" in description for description in told)
