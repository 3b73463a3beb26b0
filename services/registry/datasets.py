"""Datasets: immutable, numbered versions of text or rows under one name."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import Connection, Row, delete, func, insert, literal, select, update

from octavo.errors import AlreadyExists, InvalidArgument, NotFound
from octavo.v1 import errors_pb2
from octavo.v1.datasets_pb2 import (
    CreateDatasetRequest,
    Dataset,
    DeleteDatasetRequest,
    ListDatasetsRequest,
    ListDatasetsResponse,
    UpdateDatasetRequest,
)
from services.registry import etags, labels, limits, masks, names, pages
from services.registry.blobs import timestamp
from services.registry.change import Change
from services.registry.dataset_survey import Survey
from services.registry.names import DatasetName
from services.registry.schema import DATASET_VERSIONS, DATASETS, LABELS

_CHANGEABLE = ("description", "labels", "blob", "format")
_SHOWN_ERRORS = 10
_NEWEST = (DATASET_VERSIONS.c.dataset == DATASETS.c.dataset) & (DATASET_VERSIONS.c.version == DATASETS.c.version)


def check_usable(survey: Survey, field: str) -> None:
    """Raises InvalidArgument, with where and why, if the content cannot be a dataset."""
    if not survey.errors:
        return
    shown = survey.errors[:_SHOWN_ERRORS]
    lines = [f"line {error.line}: {error.description}" if error.line else error.description for error in shown]
    more = len(survey.errors) - len(shown)
    raise InvalidArgument.field(
        field,
        "; ".join(lines) + (f"; and {more} more, which PreviewDataset shows" if more else ""),
        reason=errors_pb2.REASON_DATASET_INVALID,
        line=shown[0].line,
        offset_bytes=shown[0].offset_bytes,
    )


def create(change: Change, request: CreateDatasetRequest, survey: Survey) -> Dataset:
    """Makes a dataset of content that was surveyed."""
    dataset = names.checked_id(request.dataset_id, "dataset_id")
    name = names.dataset_name(dataset)
    limits.check_description(request.dataset.description, "dataset.description")
    labels.check(request.dataset.labels, "dataset.labels")
    taken = select(DATASETS.c.dataset).where(DATASETS.c.dataset == dataset)
    if change.connection.execute(taken).one_or_none() is not None:
        raise AlreadyExists(
            errors_pb2.REASON_DATASET_EXISTS, f"{name} exists; choose another id, or update it", dataset=name
        )
    change.connection.execute(
        insert(DATASETS).values(
            dataset=dataset,
            version=0,
            description=request.dataset.description,
            changes=0,
            create_time_ns=change.time_ns,
            update_time_ns=change.time_ns,
        )
    )
    labels.replace(change.connection, name, request.dataset.labels)
    _add_version(change, dataset, request.dataset.blob, survey)
    change.record("dataset.created", name, {"blob": request.dataset.blob})
    return get(change.connection, DatasetName(dataset))


def get(connection: Connection, name: DatasetName, field: str = "name") -> Dataset:
    """The dataset in the version named, or its newest; NotFound if there is none."""
    of_version = DATASET_VERSIONS.c.dataset == DATASETS.c.dataset
    if name.version:
        of_version &= DATASET_VERSIONS.c.version == name.version
    else:
        of_version = _NEWEST
    rows = connection.execute(_joined(of_version).where(DATASETS.c.dataset == name.dataset)).all()
    if not rows:
        full = names.dataset_name(name.dataset, name.version)
        description = f"there is no {full}; ListDatasets lists what there is"
        raise NotFound(errors_pb2.REASON_DATASET_NOT_FOUND, description, violations={field: description}, dataset=full)
    return _assembled(connection, rows)[0]


def list_datasets(connection: Connection, request: ListDatasetsRequest) -> ListDatasetsResponse:
    """One page of the datasets, each in its newest version, by name."""
    conditions = labels.holding(labels.parse_filter(request.filter), literal("datasets/") + DATASETS.c.dataset)
    after = pages.key_after(request, request.page_token, (str,))
    size = pages.size(request.page_size)
    chosen = _joined(_NEWEST).where(*conditions).order_by(DATASETS.c.dataset).limit(size + 1)
    if after:
        chosen = chosen.where(DATASETS.c.dataset > after[0])
    rows = connection.execute(chosen).all()
    counted = select(func.count()).select_from(DATASETS).where(*conditions)
    shown = rows[:size]
    return ListDatasetsResponse(
        datasets=_assembled(connection, shown),
        next_page_token=pages.token(request, [shown[-1].dataset]) if len(rows) > size else "",
        total_size=connection.execute(counted).scalar_one(),
    )


def is_new_content(request: UpdateDatasetRequest, current: Dataset) -> bool:
    """Whether an update would make a version: another blob, or the same to be read in another format."""
    fields = masks.chosen(request.update_mask, request.dataset, _CHANGEABLE)
    is_other_blob = "blob" in fields and request.dataset.blob != current.blob
    return is_other_blob or ("format" in fields and request.dataset.format != current.format)


def update_dataset(change: Change, request: UpdateDatasetRequest, survey: Survey | None) -> Dataset:
    """Changes what describes a dataset; with a survey of new content, makes the next version."""
    wanted = request.dataset
    dataset = names.dataset_in(wanted.name, "dataset.name").dataset
    current = get(change.connection, DatasetName(dataset), "dataset.name")
    etags.check(wanted.etag, current.etag, current.name)
    fields = masks.chosen(request.update_mask, wanted, _CHANGEABLE)
    facts = {"fields": ",".join(sorted(fields))}
    if "description" in fields:
        limits.check_description(wanted.description, "dataset.description")
        described = update(DATASETS).where(DATASETS.c.dataset == dataset)
        change.connection.execute(described.values(description=wanted.description))
    if "labels" in fields:
        labels.check(wanted.labels, "dataset.labels")
        labels.replace(change.connection, current.name, wanted.labels)
    if survey is not None:
        blob = wanted.blob if "blob" in fields else current.blob
        _add_version(change, dataset, blob, survey)
        facts |= {"from": current.blob, "to": blob}
    _touch(change, dataset)
    change.record("dataset.updated", current.name, facts)
    return get(change.connection, DatasetName(dataset))


def add_repaired(change: Change, before: Dataset, blob: str, survey: Survey, dropped: Mapping[str, int]) -> Dataset:
    """Makes mended content the next version. Aborted if somebody else made one since `before` was read."""
    dataset = names.dataset_in(before.name).dataset
    current = get(change.connection, DatasetName(dataset))
    etags.check(before.etag, current.etag, current.name)
    _add_version(change, dataset, blob, survey)
    _touch(change, dataset)
    facts = {"from": before.blob, "to": blob} | {f"dropped_{why}": str(count) for why, count in dropped.items()}
    change.record("dataset.repaired", current.name, facts)
    return get(change.connection, DatasetName(dataset))


def delete_dataset(change: Change, request: DeleteDatasetRequest) -> Empty:
    """Deletes a dataset with all its versions. Their numbers are not given again."""
    dataset = names.dataset_in(request.name).dataset
    current = get(change.connection, DatasetName(dataset))
    etags.check(request.etag, current.etag, current.name)
    for table in (DATASET_VERSIONS, DATASETS):
        change.connection.execute(delete(table).where(table.c.dataset == dataset))
    change.connection.execute(delete(LABELS).where(LABELS.c.resource == current.name))
    change.record("dataset.deleted", current.name, {"from": current.blob})
    return Empty()


def _add_version(change: Change, dataset: str, blob: str, survey: Survey) -> None:
    version = change.next_number(names.dataset_name(dataset))
    record = Dataset(format=survey.form, blob=blob, statistics=survey.statistics)
    change.connection.execute(
        insert(DATASET_VERSIONS).values(
            dataset=dataset, version=version, digest=names.blob_in(blob), record=record.SerializeToString()
        )
    )
    newest = update(DATASETS).where(DATASETS.c.dataset == dataset)
    change.connection.execute(newest.values(version=version))


def _touch(change: Change, dataset: str) -> None:
    change.connection.execute(
        update(DATASETS)
        .where(DATASETS.c.dataset == dataset)
        .values(changes=DATASETS.c.changes + 1, update_time_ns=change.time_ns)
    )


def _joined(of_version: Any) -> Any:
    described = [column for column in DATASETS.c if column.name != "version"]
    return select(*described, DATASET_VERSIONS.c.version, DATASET_VERSIONS.c.record).join(DATASET_VERSIONS, of_version)


def _assembled(connection: Connection, rows: Sequence[Row[Any]]) -> list[Dataset]:
    words = labels.read(connection, [names.dataset_name(row.dataset) for row in rows])
    return [_dataset(row, words.get(names.dataset_name(row.dataset), {})) for row in rows]


def _dataset(row: Row[Any], words: Mapping[str, str]) -> Dataset:
    dataset = Dataset.FromString(row.record)
    dataset.name = names.dataset_name(row.dataset)
    dataset.version = row.version
    dataset.description = row.description
    dataset.labels.update(words)
    dataset.create_time.CopyFrom(timestamp(row.create_time_ns))
    dataset.update_time.CopyFrom(timestamp(row.update_time_ns))
    dataset.etag = etags.etag(dataset.name, row.create_time_ns, row.changes)
    return dataset
