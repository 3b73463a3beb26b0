"""Datasets and the bytes they are made of: surveys and rows are read in the disk threads, never in a transaction."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from octavo.errors import InvalidArgument
from octavo.formats import dataset_rows
from octavo.formats.dataset_rows import Position
from octavo.v1 import errors_pb2
from octavo.v1.datasets_pb2 import (
    CreateDatasetRequest,
    Dataset,
    DatasetFormat,
    PreviewDatasetRequest,
    PreviewDatasetResponse,
    ReadRowsRequest,
    ReadRowsResponse,
    RepairDatasetRequest,
    RepairDatasetResponse,
    UpdateDatasetRequest,
)
from services.registry import blobs, dataset_repair, dataset_survey, datasets, names, pages
from services.registry.blob_files import BlobFiles
from services.registry.change import Change
from services.registry.dataset_survey import Survey
from services.registry.names import DatasetName
from services.registry.transactions import Transactions

_Answer = TypeVar("_Answer")

_DEFAULT_SHOWN, _MAXIMUM_SHOWN = 10, 100
# Rows are answered in one message: well below the 4 MiB that clients take unasked.
_PAGE_BYTES = 1 << 20


class DatasetContent:
    """Surveys blobs and reads rows of datasets."""

    def __init__(self, files: BlobFiles, transactions: Transactions, disk: Executor) -> None:
        self._files = files
        self._transactions = transactions
        self._disk = disk

    async def preview(self, request: PreviewDatasetRequest) -> PreviewDatasetResponse:
        """What a blob would be as a dataset."""
        if not 0 <= request.rows <= _MAXIMUM_SHOWN:
            raise InvalidArgument.field("rows", f"{request.rows}; 1 to {_MAXIMUM_SHOWN}, or 0 for {_DEFAULT_SHOWN}")
        survey = await self._survey(request.blob, request.format, "blob", request.rows or _DEFAULT_SHOWN)
        return PreviewDatasetResponse(
            format=survey.form, statistics=survey.statistics, rows=survey.rows, findings=survey.findings
        )

    async def create(self, request: CreateDatasetRequest, actor: str) -> Dataset:
        """Makes a dataset, if its content can be one."""
        names.checked_id(request.dataset_id, "dataset_id")
        survey = await self._survey(request.dataset.blob, request.dataset.format, "dataset.blob")
        datasets.check_usable(survey, "dataset.blob")
        return await self._transactions.create(
            request, Dataset, lambda change: datasets.create(change, request, survey), actor=actor
        )

    async def update(self, request: UpdateDatasetRequest, actor: str) -> Dataset:
        """Changes a dataset; new content makes its next version."""
        name = names.dataset_in(request.dataset.name, "dataset.name")
        current = await self._transactions.read(
            lambda connection: datasets.get(connection, DatasetName(name.dataset), "dataset.name")
        )
        survey = None
        if datasets.is_new_content(request, current):
            blob = request.dataset.blob or current.blob
            survey = await self._survey(blob, request.dataset.format, "dataset.blob")
            datasets.check_usable(survey, "dataset.blob")
        return await self._transactions.write(
            lambda change: datasets.update_dataset(change, request, survey), actor=actor
        )

    async def repair(self, request: RepairDatasetRequest, actor: str) -> RepairDatasetResponse:
        """Makes the next version without the rows that the request leaves out; none if there are none such."""
        name = names.dataset_in(request.name)
        before = await self._transactions.read(lambda connection: datasets.get(connection, DatasetName(name.dataset)))
        dataset_repair.check(request, before)
        await self._check_readable(before)
        mended = await self._in_thread(lambda: self._mended(request, before))
        if mended is None:
            return RepairDatasetResponse(dataset=before)
        digest, survey, dropped = mended

        def add(change: Change) -> Dataset:
            blob = blobs.add(change, digest, survey.statistics.size_bytes)
            return datasets.add_repaired(change, before, blob.name, survey, dropped)

        after = await self._transactions.write(add, actor=actor)
        return RepairDatasetResponse(dataset=after, dropped_rows=dropped)

    async def read_rows(self, request: ReadRowsRequest) -> ReadRowsResponse:
        """One page of the rows, in order."""
        name = names.dataset_in(request.name)
        dataset = await self._transactions.read(lambda connection: datasets.get(connection, name))
        # The newest version may be another one by the next page: the token stays with this one.
        after = pages.key_after(request, request.page_token, (int, int, int, int))
        if after and after[0] != dataset.version:
            dataset = await self._transactions.read(
                lambda connection: datasets.get(connection, DatasetName(name.dataset, int(after[0])))
            )
        begin = _position(after, dataset) if after else Position()
        await self._check_readable(dataset)
        size = pages.size(request.page_size)
        return await self._in_thread(lambda: self._page(request, dataset, begin, size))

    def _page(self, request: ReadRowsRequest, dataset: Dataset, begin: Position, size: int) -> ReadRowsResponse:
        response = ReadRowsResponse(total_size=dataset.statistics.rows)
        response_bytes = 0
        with self._files.path(names.blob_in(dataset.blob)).open("rb") as file:
            for row in dataset_rows.rows(file, dataset.format, begin):
                if len(response.rows) == size or response_bytes > _PAGE_BYTES:
                    response.next_page_token = pages.token(request, [dataset.version, *row.begin])
                    break
                if row.content is not None:
                    shown = dataset_survey.shown(row.begin.row, row.content)
                    response_bytes += shown.ByteSize()
                    response.rows.append(shown)
        return response

    def _mended(self, request: RepairDatasetRequest, before: Dataset) -> tuple[str, Survey, Counter[str]] | None:
        source = self._files.path(names.blob_in(before.blob))
        self._files.check_room(before.statistics.size_bytes)
        with self._files.new_file() as new:
            dropped = dataset_repair.copy_kept(source, new.file, before, request)
            if not dropped:
                return None
            new.file.flush()
            survey = dataset_survey.survey(new.path, before.format, 0)
            datasets.check_usable(survey, "name")
            digest, _ = new.publish()
        return digest, survey, dropped

    async def _survey(self, blob: str, form: DatasetFormat.ValueType, field: str, shown_rows: int = 0) -> Survey:
        digest = names.blob_in(blob, field)
        if form not in DatasetFormat.values():
            raise InvalidArgument.field(field.replace("blob", "format"), f"{form} is not a format")
        await self._transactions.read(lambda connection: blobs.get(connection, self._files, digest, field))
        return await self._in_thread(lambda: dataset_survey.survey(self._files.path(digest), form, shown_rows))

    async def _check_readable(self, dataset: Dataset) -> None:
        """Raises DataLoss if the bytes of a dataset are gone or cut; uploading them again mends it."""
        digest = names.blob_in(dataset.blob)
        await self._transactions.read(lambda connection: blobs.get_readable(connection, self._files, digest))

    async def _in_thread(self, work: Callable[[], _Answer]) -> _Answer:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)


def _position(key: pages.Key, dataset: Dataset) -> Position:
    """Where the page of a token begins. Raises InvalidArgument for a place that is none of this dataset."""
    position = Position(*(int(part) for part in key[1:]))
    if min(position) < 0 or position.offset_bytes > dataset.statistics.size_bytes:
        raise InvalidArgument.field(
            "page_token",
            "leads to no row of this dataset; begin again without a token",
            reason=errors_pb2.REASON_INVALID_PAGE_TOKEN,
        )
    return position
