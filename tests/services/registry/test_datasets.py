"""Datasets over the wire: previewed, made, versioned, read, mended, refused with the place of what is wrong."""

import json
from collections.abc import Callable

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict

from octavo.errors import Aborted, AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from octavo.v1 import errors_pb2
from octavo.v1.blobs_pb2 import ReadBlobRequest
from octavo.v1.datasets_pb2 import (
    CreateDatasetRequest,
    Dataset,
    DatasetFindingSeverity,
    DatasetFormat,
    DeleteDatasetRequest,
    GetDatasetRequest,
    ListDatasetsRequest,
    PreviewDatasetRequest,
    ReadRowsRequest,
    RepairDatasetRequest,
    UpdateDatasetRequest,
)
from services.registry import pages
from tests.services.registry.conftest import Registry, blob_name

TEXT, JSONL, CSV = (
    DatasetFormat.DATASET_FORMAT_TEXT,
    DatasetFormat.DATASET_FORMAT_JSONL,
    DatasetFormat.DATASET_FORMAT_CSV,
)
ROWS = b'{"input":"a","output":"1"}\n{"input":"","output":"2"}\n\n{"input":"a","output":"1"}\n{"input":"long long"}\n'


async def make(registry: Registry, content: bytes, dataset_id: str = "tiny", **fields: object) -> Dataset:
    blob = await registry.put(content)
    dataset = Dataset(**({"blob": blob.name} | fields))
    return await registry.datasets.CreateDataset(CreateDatasetRequest(dataset=dataset, dataset_id=dataset_id))


async def rows(registry: Registry, name: str, page_size: int = 2) -> list[dict[str, object]]:
    found, token = [], ""
    while True:
        request = ReadRowsRequest(name=name, page_size=page_size, page_token=token)
        page = await registry.datasets.ReadRows(request)
        assert [row.index for row in page.rows] == list(range(len(found), len(found) + len(page.rows)))
        found.extend(MessageToDict(row.content) for row in page.rows)
        token = page.next_page_token
        if not token:
            assert page.total_size == len(found)
            return found


async def test_text_is_counted(registry: Registry) -> None:
    made = await make(registry, "Hällo\nWelt\n\nende".encode(), labels={"lang": "de"})
    assert (made.name, made.version, made.format) == ("datasets/tiny", 1, TEXT)
    counted = made.statistics
    assert (counted.size_bytes, counted.characters, counted.symbols, counted.rows) == (17, 16, 10, 4)
    assert await registry.datasets.GetDataset(GetDatasetRequest(name="datasets/tiny")) == made
    assert await rows(registry, "datasets/tiny") == [
        {"text": "Hällo"},
        {"text": "Welt"},
        {"text": ""},
        {"text": "ende"},
    ]


async def test_rows_of_json_are_counted_and_read(registry: Registry) -> None:
    made = await make(registry, ROWS)
    assert (made.format, made.statistics.rows, list(made.statistics.columns)) == (JSONL, 4, ["input", "output"])
    expected = [json.loads(line) for line in ROWS.splitlines() if line]
    for page_size in (1, 2, 3, 50):
        assert await rows(registry, "datasets/tiny", page_size) == expected


async def test_records_of_csv_are_read_with_their_quotes_and_newlines(registry: Registry) -> None:
    content = b'input,output\na,1\n"two\nlines ""quoted""",2\nlast,3'
    made = await make(registry, content)
    assert (made.format, made.statistics.rows, list(made.statistics.columns)) == (CSV, 3, ["input", "output"])
    assert await rows(registry, "datasets/tiny", 1) == [
        {"input": "a", "output": "1"},
        {"input": 'two\nlines "quoted"', "output": "2"},
        {"input": "last", "output": "3"},
    ]


async def test_a_preview_shows_rows_and_findings_and_keeps_nothing(registry: Registry) -> None:
    blob = await registry.put(ROWS + b"nonsense\n")
    shown = await registry.datasets.PreviewDataset(PreviewDatasetRequest(blob=blob.name, rows=1))
    assert shown.format == JSONL
    assert [MessageToDict(row.content) for row in shown.rows] == [{"input": "a", "output": "1"}]
    errors = [
        (finding.line, finding.offset_bytes)
        for finding in shown.findings
        if finding.severity == DatasetFindingSeverity.DATASET_FINDING_SEVERITY_ERROR
    ]
    assert errors == [(6, len(ROWS))]
    assert (await registry.datasets.ListDatasets(ListDatasetsRequest())).total_size == 0
    with pytest.raises(InvalidArgument):
        await registry.datasets.PreviewDataset(PreviewDatasetRequest(blob=blob.name, rows=101))
    with pytest.raises(NotFound):
        await registry.datasets.PreviewDataset(PreviewDatasetRequest(blob=blob_name(b"missing")))


@pytest.mark.parametrize(
    ("content", "form", "line", "offset"),
    [
        (b"", 0, 0, 0),
        (b" \n\n ", 0, 0, 0),
        (b"good\nb\xffad\n", TEXT, 2, 6),
        (b"\xe4\xb8", TEXT, 1, 0),
        (b'{"a":1}\n{"a":\n', JSONL, 2, 8),
        (b'{"a":1}\n[1]\n', JSONL, 2, 8),
        (b'{"a":NaN}\n', JSONL, 1, 0),
        (b'{"a":' + b"[" * 100_000 + b"\n", JSONL, 1, 0),
        (b'{"a":"\\ud800"}\n', JSONL, 1, 0),
        (b'{"a":1' + b"0" * 400 + b"}\n", JSONL, 1, 0),
        (b"\n\n", JSONL, 0, 0),
        (b"a,b\n1\n", CSV, 2, 4),
        (b"a,a\n1,2\n", CSV, 1, 0),
        (b"a,b\n", CSV, 0, 0),
        (b'a,b\n1,"open\n', CSV, 2, 4),
    ],
)
async def test_what_is_no_dataset_is_refused_with_its_place(
    registry: Registry, content: bytes, form: int, line: int, offset: int
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await make(registry, content, format=form)
    assert refused.value.reason == errors_pb2.REASON_DATASET_INVALID
    assert list(refused.value.violations) == ["dataset.blob"]
    assert refused.value.metadata == {"line": str(line), "offset_bytes": str(offset)}
    with pytest.raises(NotFound):
        await registry.datasets.GetDataset(GetDatasetRequest(name="datasets/tiny"))


async def test_new_content_makes_a_version_and_the_old_one_stays(registry: Registry) -> None:
    first = await make(registry, b"one\n", description="d")
    blob = await registry.put(b"two\nthree\n")
    wanted = Dataset(name=first.name, blob=blob.name, etag=first.etag)
    second = await registry.datasets.UpdateDataset(UpdateDatasetRequest(dataset=wanted))
    assert (second.version, second.statistics.rows, second.description) == (2, 2, "d")
    old = await registry.datasets.GetDataset(GetDatasetRequest(name="datasets/tiny/versions/1"))
    assert (old.version, old.blob) == (1, first.blob)
    assert await rows(registry, "datasets/tiny/versions/1") == [{"text": "one"}]
    with pytest.raises(Aborted):
        await registry.datasets.UpdateDataset(UpdateDatasetRequest(dataset=wanted))
    same = Dataset(name=first.name, blob=blob.name, description="new")
    third = await registry.datasets.UpdateDataset(UpdateDatasetRequest(dataset=same))
    assert (third.version, third.description) == (2, "new")
    other = UpdateDatasetRequest(
        dataset=Dataset(name=first.name, format=JSONL), update_mask=FieldMask(paths=["format"])
    )
    with pytest.raises(InvalidArgument):
        await registry.datasets.UpdateDataset(other)


async def test_pages_of_rows_stay_with_the_version_they_began_with(registry: Registry) -> None:
    made = await make(registry, b"one\ntwo\n")
    page = await registry.datasets.ReadRows(ReadRowsRequest(name=made.name, page_size=1))
    blob = await registry.put(b"other\nwords\n")
    await registry.datasets.UpdateDataset(UpdateDatasetRequest(dataset=Dataset(name=made.name, blob=blob.name)))
    rest = ReadRowsRequest(name=made.name, page_size=1, page_token=page.next_page_token)
    page = await registry.datasets.ReadRows(rest)
    assert [MessageToDict(row.content) for row in page.rows] == [{"text": "two"}]


async def test_pages_end_before_they_are_too_large_and_long_lines_are_cut(registry: Registry) -> None:
    made = await make(registry, (b"x" * 300_000 + b"\n") * 40)
    page = await registry.datasets.ReadRows(ReadRowsRequest(name=made.name))
    assert page.rows[0].content["text"] == "x" * 65_536 + "…"
    assert len(page.rows) < 40
    assert page.ByteSize() < 2 << 20
    assert len(await rows(registry, made.name, 50)) == 40


async def test_names_are_taken_once_and_numbers_never_given_again(registry: Registry) -> None:
    await make(registry, b"one\n")
    with pytest.raises(AlreadyExists):
        await make(registry, b"two\n")
    with pytest.raises(InvalidArgument):
        await make(registry, b"two\n", "../x")
    await registry.datasets.DeleteDataset(DeleteDatasetRequest(name="datasets/tiny"))
    with pytest.raises(NotFound) as refused:
        await registry.datasets.GetDataset(GetDatasetRequest(name="datasets/tiny/versions/1"))
    assert refused.value.reason == errors_pb2.REASON_DATASET_NOT_FOUND
    assert (await make(registry, b"two\n")).version == 2


async def test_the_list_is_paged_and_filtered(registry: Registry) -> None:
    for name in ("b", "a", "c"):
        await make(registry, name.encode(), name, labels={"name": name})
    page = await registry.datasets.ListDatasets(ListDatasetsRequest(page_size=2))
    assert [dataset.name for dataset in page.datasets] == ["datasets/a", "datasets/b"]
    rest = ListDatasetsRequest(page_size=2, page_token=page.next_page_token)
    assert [dataset.name for dataset in (await registry.datasets.ListDatasets(rest)).datasets] == ["datasets/c"]
    filtered = await registry.datasets.ListDatasets(ListDatasetsRequest(filter='labels.name = "b"'))
    assert [dataset.name for dataset in filtered.datasets] == ["datasets/b"]


async def test_a_repeated_creation_is_answered_once_and_a_trial_makes_nothing(
    registry: Registry, request_id: Callable[[], str]
) -> None:
    blob = await registry.put(b"one\n")
    request = CreateDatasetRequest(dataset=Dataset(blob=blob.name), dataset_id="tiny", validate_only=True)
    assert (await registry.datasets.CreateDataset(request)).version == 1
    with pytest.raises(NotFound):
        await registry.datasets.GetDataset(GetDatasetRequest(name="datasets/tiny"))
    request.validate_only, request.request_id = False, request_id()
    assert await registry.datasets.CreateDataset(request) == await registry.datasets.CreateDataset(request)


async def test_rows_that_are_empty_doubled_short_or_long_are_left_out(registry: Registry) -> None:
    content = (
        b'{"input":"a","output":"1"}\n{"input":"","output":"2"}\n{"input": "a", "output":"1"}\n'
        b'{"input":"abcdefghij","output":"3"}\n{"input":"b","output":"4"}\n'
    )
    await make(registry, content)
    request = RepairDatasetRequest(
        name="datasets/tiny", drop_empty_rows=True, drop_duplicates=True, maximum_characters=5
    )
    mended = await registry.datasets.RepairDataset(request)
    assert dict(mended.dropped_rows) == {"empty": 1, "duplicate": 1, "long": 1}
    assert (mended.dataset.version, mended.dataset.statistics.rows) == (2, 2)
    assert await rows(registry, "datasets/tiny") == [{"input": "a", "output": "1"}, {"input": "b", "output": "4"}]
    kept = b"".join([part.chunk async for part in registry.blobs.ReadBlob(ReadBlobRequest(name=mended.dataset.blob))])
    assert kept == b'{"input":"a","output":"1"}\n{"input":"b","output":"4"}\n'
    again = await registry.datasets.RepairDataset(request)
    assert not again.dropped_rows
    assert again.dataset.version == 2


async def test_csv_keeps_its_header_when_it_is_mended(registry: Registry) -> None:
    await make(registry, b'a,b\n1,2\n1,2\n"x\ny",3\n')
    await registry.datasets.RepairDataset(RepairDatasetRequest(name="datasets/tiny", drop_duplicates=True))
    assert await rows(registry, "datasets/tiny") == [{"a": "1", "b": "2"}, {"a": "x\ny", "b": "3"}]


async def test_repairs_that_make_no_sense_are_refused(registry: Registry) -> None:
    await make(registry, b"text\n", "text")
    await make(registry, b'{"a":"x"}\n')
    with pytest.raises(FailedPrecondition):
        await registry.datasets.RepairDataset(RepairDatasetRequest(name="datasets/text", drop_duplicates=True))
    for request in (
        RepairDatasetRequest(name="datasets/tiny"),
        RepairDatasetRequest(name="datasets/tiny", minimum_characters=-1),
        RepairDatasetRequest(name="datasets/tiny", minimum_characters=10),
    ):
        with pytest.raises(InvalidArgument):
            await registry.datasets.RepairDataset(request)
    assert not list((registry.directory / "staging").iterdir())


async def test_rows_whose_bytes_are_gone_are_told_as_lost_and_come_back_with_an_upload(registry: Registry) -> None:
    made = await make(registry, ROWS)
    (path,) = registry.directory.rglob(made.blob.removeprefix("blobs/sha256:"))
    path.unlink()
    with pytest.raises(DataLoss, match="upload it again"):
        await rows(registry, made.name)
    with pytest.raises(DataLoss, match="upload it again"):
        await registry.datasets.RepairDataset(RepairDatasetRequest(name=made.name, drop_empty_rows=True))
    await registry.put(ROWS)
    assert len(await rows(registry, made.name)) == 4


@pytest.mark.parametrize("place", [(-1, 1, 0), (1 << 70, 1, 0), (0, 1, -5)])
async def test_a_forged_place_is_refused(registry: Registry, place: tuple[int, ...]) -> None:
    made = await make(registry, ROWS)
    request = ReadRowsRequest(name=made.name)
    request.page_token = pages.token(request, [made.version, *place])
    with pytest.raises(InvalidArgument) as refusal:
        await registry.datasets.ReadRows(request)
    assert refusal.value.reason == errors_pb2.REASON_INVALID_PAGE_TOKEN
