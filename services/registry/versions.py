"""Versions: immutable, numbered sets of files. A version is there when all its blobs are."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import Connection, Row, String, bindparam, cast, delete, func, insert, literal, select, update

from octavo.errors import FailedPrecondition
from octavo.v1 import errors_pb2
from octavo.v1.registry_pb2 import (
    CreateVersionRequest,
    DeleteVersionRequest,
    ListVersionsRequest,
    ListVersionsResponse,
    UpdateVersionRequest,
    Version,
)
from services.registry import blobs, etags, labels, limits, manifests, masks, models, names, pages, references
from services.registry.blob_files import BlobFiles
from services.registry.blobs import timestamp
from services.registry.change import Change
from services.registry.names import Reference
from services.registry.schema import ALIASES, LABELS, VERSION_FILES, VERSIONS

_CHANGEABLE = ("description", "labels", "metrics")
_LISTED = [column for column in VERSIONS.c if column is not VERSIONS.c.tensors]
_RESOURCE = literal("models/") + VERSIONS.c.model + literal("/versions/") + cast(VERSIONS.c.number, String)

# Built once: building and hashing them takes SQLAlchemy longer than SQLite takes to run them, and every program
# resolves versions.
_ONE = select(VERSIONS).where(VERSIONS.c.model == bindparam("model"), VERSIONS.c.number == bindparam("number"))
_ALIASES_OF_ONE = (
    select(ALIASES.c.alias)
    .where(ALIASES.c.model == bindparam("model"), ALIASES.c.number == bindparam("number"))
    .order_by(ALIASES.c.alias)
)


def create(change: Change, files: BlobFiles, request: CreateVersionRequest) -> Version:
    """Registers the next version; makes its model if there is none. All its blobs must be there."""
    model = names.model_in(request.parent, "parent")
    version = request.version
    manifests.check(version)
    _check_blobs(change.connection, files, version)
    models.make_if_missing(change, model)
    number = change.next_number(names.model_name(model))
    name = names.version_name(model, number)
    record = Version()
    record.CopyFrom(version)
    record.manifest_digest = manifests.digest(version)
    record.size_bytes = sum(file.size_bytes for file in version.files)
    sequence = change.record("version.created", name, {"manifest_digest": record.manifest_digest})
    change.connection.execute(
        insert(VERSIONS).values(
            model=model,
            number=number,
            sequence=sequence,
            record=_recorded(record),
            tensors=Version(tensors=version.tensors).SerializeToString(),
            changes=0,
            create_time_ns=change.time_ns,
            update_time_ns=change.time_ns,
        )
    )
    rows = [
        {"model": model, "number": number, "path": file.path, "digest": names.blob_in(file.blob)}
        for file in version.files
    ]
    change.connection.execute(insert(VERSION_FILES), rows)
    labels.replace(change.connection, name, version.labels)
    models.touch(change, model)
    return get(change.connection, model, number)


def get(connection: Connection, model: str, number: int, field: str = "name") -> Version:
    """The version with its tensors; NotFound if there is none."""
    which = {"model": model, "number": number}
    row = connection.execute(_ONE, which).one_or_none()
    if row is None:
        raise references.not_found(connection, Reference(model, number=number), field)
    words = labels.read_one(connection, names.version_name(model, number))
    return _version(row, words, connection.execute(_ALIASES_OF_ONE, which).scalars().all())


def resolve(connection: Connection, reference: str, field: str = "reference") -> Version:
    """The version that a reference names now."""
    parts = names.reference_in(reference, field)
    number = parts.number or references.number_of(connection, parts, field)
    return get(connection, parts.model, number, field)


def list_versions(connection: Connection, request: ListVersionsRequest) -> ListVersionsResponse:
    """One page of the versions of a model, or of all, newest first, without their tensors."""
    conditions = labels.holding(labels.parse_filter(request.filter), _RESOURCE)
    if request.parent != "models/-":
        model = names.model_in(request.parent, "parent")
        references.check_model(connection, model, "parent")
        conditions.append(VERSIONS.c.model == model)
    after = pages.key_after(request, request.page_token, (int,))
    size = pages.size(request.page_size)
    chosen = select(*_LISTED).where(*conditions).order_by(VERSIONS.c.sequence.desc()).limit(size + 1)
    if after:
        chosen = chosen.where(VERSIONS.c.sequence < after[0])
    rows = connection.execute(chosen).all()
    total = connection.execute(select(func.count()).select_from(VERSIONS).where(*conditions)).scalar_one()
    shown = rows[:size]
    token = pages.token(request, [shown[-1].sequence]) if len(rows) > size else ""
    return ListVersionsResponse(versions=_assembled(connection, shown), next_page_token=token, total_size=total)


def update_version(change: Change, request: UpdateVersionRequest) -> Version:
    """Changes description, labels and metrics; nothing else of a version ever changes."""
    version = request.version
    model, number = names.version_in(version.name, "version.name")
    current = get(change.connection, model, number, "version.name")
    etags.check(version.etag, current.etag, current.name)
    fields = masks.chosen(request.update_mask, version, _CHANGEABLE)
    if "description" in fields:
        limits.check_description(version.description, "version.description")
        current.description = version.description
    if "metrics" in fields:
        limits.check_metrics(version.metrics, "version.metrics")
        current.ClearField("metrics")
        current.metrics.update(version.metrics)
    if "labels" in fields:
        labels.check(version.labels, "version.labels")
        labels.replace(change.connection, current.name, version.labels)
    change.connection.execute(
        update(VERSIONS)
        .where(VERSIONS.c.model == model, VERSIONS.c.number == number)
        .values(record=_recorded(current), changes=VERSIONS.c.changes + 1, update_time_ns=change.time_ns)
    )
    models.touch(change, model)
    change.record("version.updated", current.name, {"fields": ",".join(sorted(fields))})
    return get(change.connection, model, number)


def delete_version(change: Change, request: DeleteVersionRequest) -> Empty:
    """Deletes a version that no alias and no deployment names. Its number is not given again."""
    model, number = names.version_in(request.name)
    connection = change.connection
    current = get(connection, model, number)
    etags.check(request.etag, current.etag, current.name)
    if current.aliases:
        shown = ", ".join(current.aliases)
        raise FailedPrecondition(
            errors_pb2.REASON_VERSION_IN_USE,
            f"{current.name} has the alias {shown}; move or delete it first",
            version=current.name,
            aliases=shown,
        )
    references.check_not_deployed(connection, model, number)
    for table in (VERSION_FILES, VERSIONS):
        connection.execute(delete(table).where(table.c.model == model, table.c.number == number))
    connection.execute(delete(LABELS).where(LABELS.c.resource == current.name))
    models.touch(change, model)
    change.record("version.deleted", current.name, {"manifest_digest": current.manifest_digest})
    return Empty()


def _check_blobs(connection: Connection, files: BlobFiles, version: Version) -> None:
    for index, file in enumerate(version.files):
        field = f"version.files[{index}]"
        blob = blobs.get(connection, files, names.blob_in(file.blob), f"{field}.blob")
        blobs.check_size(blob, file.size_bytes, f"{field}.size_bytes")


def _recorded(version: Version) -> bytes:
    """What the tables do not keep in columns and rows of their own."""
    return Version(
        files=version.files,
        manifest_digest=version.manifest_digest,
        size_bytes=version.size_bytes,
        family=version.family,
        parameter_count=version.parameter_count,
        metrics=version.metrics,
        lineage=version.lineage if version.HasField("lineage") else None,
        parity=version.parity if version.HasField("parity") else None,
        description=version.description,
    ).SerializeToString()


def _assembled(connection: Connection, rows: Sequence[Row[Any]]) -> list[Version]:
    """The versions of these rows, with what other tables know of them: two queries for any number of rows."""
    words = labels.read(connection, [names.version_name(row.model, row.number) for row in rows])
    aliases: dict[tuple[str, int], list[str]] = {}
    if rows:
        chosen = select(ALIASES).where(ALIASES.c.model.in_({row.model for row in rows}))
        for alias in connection.execute(chosen.order_by(ALIASES.c.alias)):
            aliases.setdefault((alias.model, alias.number), []).append(alias.alias)
    return [
        _version(
            row, words.get(names.version_name(row.model, row.number), {}), aliases.get((row.model, row.number), [])
        )
        for row in rows
    ]


def _version(row: Row[Any], words: Mapping[str, str], aliases: Sequence[str]) -> Version:
    version = Version.FromString(row.record)
    if "tensors" in row._mapping:
        version.MergeFromString(row.tensors)
    version.name = names.version_name(row.model, row.number)
    version.labels.update(words)
    version.aliases.extend(aliases)
    version.create_time.CopyFrom(timestamp(row.create_time_ns))
    version.update_time.CopyFrom(timestamp(row.update_time_ns))
    version.etag = etags.etag(version.name, row.create_time_ns, row.changes)
    return version
