"""Models: names that versions are numbered under."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import Connection, Row, delete, func, insert, literal, select, update

from octavo.errors import AlreadyExists, FailedPrecondition
from octavo.v1 import errors_pb2
from octavo.v1.registry_pb2 import (
    Alias,
    CreateModelRequest,
    DeleteModelRequest,
    ListModelsRequest,
    ListModelsResponse,
    Model,
    UpdateModelRequest,
)
from services.registry import etags, labels, limits, masks, names, pages, references
from services.registry.blobs import timestamp
from services.registry.change import Change
from services.registry.schema import ALIASES, LABELS, MODELS, VERSION_FILES, VERSIONS

_CHANGEABLE = ("description", "labels")


def create(change: Change, request: CreateModelRequest) -> Model:
    """Makes a model."""
    model = names.checked_id(request.model_id, "model_id")
    limits.check_description(request.model.description, "model.description")
    labels.check(request.model.labels, "model.labels")
    if _row(change.connection, model) is not None:
        raise AlreadyExists(
            errors_pb2.REASON_MODEL_EXISTS,
            f"{names.model_name(model)} exists; choose another id, or update it",
            model=names.model_name(model),
        )
    _insert(change, model, request.model.description, request.model.labels)
    return get(change.connection, model)


def make_if_missing(change: Change, model: str) -> None:
    """Makes the model, with nothing but its name, if there is none."""
    if _row(change.connection, model) is None:
        _insert(change, model, "", {})


def touch(change: Change, model: str) -> None:
    """Notes that something of the model changed."""
    change.connection.execute(
        update(MODELS)
        .where(MODELS.c.model == model)
        .values(changes=MODELS.c.changes + 1, update_time_ns=change.time_ns)
    )


def get(connection: Connection, model: str) -> Model:
    """The model; NotFound if there is none."""
    row = _row(connection, model)
    if row is None:
        raise references.model_not_found(model, "name")
    return _assembled(connection, [row])[0]


def list_models(connection: Connection, request: ListModelsRequest) -> ListModelsResponse:
    """One page of the models, by name."""
    terms = labels.parse_filter(request.filter)
    conditions = labels.holding(terms, literal("models/") + MODELS.c.model)
    after = pages.key_after(request, request.page_token, (str,))
    size = pages.size(request.page_size)
    chosen = select(MODELS).where(*conditions).order_by(MODELS.c.model).limit(size + 1)
    if after:
        chosen = chosen.where(MODELS.c.model > after[0])
    rows = connection.execute(chosen).all()
    total = connection.execute(select(func.count()).select_from(MODELS).where(*conditions)).scalar_one()
    shown = rows[:size]
    token = pages.token(request, [shown[-1].model]) if len(rows) > size else ""
    return ListModelsResponse(models=_assembled(connection, shown), next_page_token=token, total_size=total)


def update_model(change: Change, request: UpdateModelRequest) -> Model:
    """Changes description and labels."""
    model = names.model_in(request.model.name, "model.name")
    current = get(change.connection, model)
    etags.check(request.model.etag, current.etag, current.name)
    fields = masks.chosen(request.update_mask, request.model, _CHANGEABLE)
    if "description" in fields:
        limits.check_description(request.model.description, "model.description")
        change.connection.execute(
            update(MODELS).where(MODELS.c.model == model).values(description=request.model.description)
        )
    if "labels" in fields:
        labels.check(request.model.labels, "model.labels")
        labels.replace(change.connection, current.name, request.model.labels)
    touch(change, model)
    change.record("model.updated", current.name, {"fields": ",".join(sorted(fields))})
    return get(change.connection, model)


def delete_model(change: Change, request: DeleteModelRequest) -> Empty:
    """Deletes a model, with `force` its versions and aliases too, unless one of them is deployed."""
    model = names.model_in(request.name)
    connection = change.connection
    current = get(connection, model)
    etags.check(request.etag, current.etag, current.name)
    if current.version_count and not request.force:
        raise FailedPrecondition(
            errors_pb2.REASON_MODEL_NOT_EMPTY,
            f"{current.name} has {current.version_count} versions; `force` deletes them with it",
            model=current.name,
            version_count=current.version_count,
        )
    references.check_not_deployed(connection, model)
    for table in (VERSION_FILES, VERSIONS, ALIASES, MODELS):
        connection.execute(delete(table).where(table.c.model == model))
    is_of_model = (LABELS.c.resource == current.name) | LABELS.c.resource.startswith(f"{current.name}/versions/")
    connection.execute(delete(LABELS).where(is_of_model))
    change.record("model.deleted", current.name, {"versions": str(current.version_count)})
    return Empty()


def _insert(change: Change, model: str, description: str, given: Mapping[str, str]) -> None:
    change.connection.execute(
        insert(MODELS).values(
            model=model,
            description=description,
            changes=0,
            create_time_ns=change.time_ns,
            update_time_ns=change.time_ns,
        )
    )
    labels.replace(change.connection, names.model_name(model), given)
    change.record("model.created", names.model_name(model))


def _row(connection: Connection, model: str) -> Row[Any] | None:
    return connection.execute(select(MODELS).where(MODELS.c.model == model)).one_or_none()


def _assembled(connection: Connection, rows: Sequence[Row[Any]]) -> list[Model]:
    """The models of these rows, with what other tables know of them: three queries for any number of rows."""
    ids = [row.model for row in rows]
    aliases: dict[str, list[Alias]] = {}
    chosen = select(ALIASES).where(ALIASES.c.model.in_(ids)).order_by(ALIASES.c.model, ALIASES.c.alias)
    for alias in connection.execute(chosen):
        aliases.setdefault(alias.model, []).append(
            Alias(
                name=names.alias_name(alias.model, alias.alias),
                version=names.version_name(alias.model, alias.number),
                update_time=timestamp(alias.update_time_ns),
            )
        )
    counted = select(VERSIONS.c.model, func.max(VERSIONS.c.number).label("newest"), func.count().label("count"))
    versions = {
        row["model"]: dict(row)
        for row in connection.execute(counted.where(VERSIONS.c.model.in_(ids)).group_by(VERSIONS.c.model)).mappings()
    }
    words = labels.read(connection, [names.model_name(model) for model in ids])
    return [
        _model(row, words.get(names.model_name(row.model), {}), aliases.get(row.model, []), versions.get(row.model))
        for row in rows
    ]


def _model(
    row: Row[Any], words: Mapping[str, str], aliases: Sequence[Alias], versions: Mapping[str, Any] | None
) -> Model:
    name = names.model_name(row.model)
    return Model(
        name=name,
        description=row.description,
        labels=words,
        aliases=aliases,
        latest_version=names.version_name(row.model, versions["newest"]) if versions else "",
        version_count=versions["count"] if versions else 0,
        create_time=timestamp(row.create_time_ns),
        update_time=timestamp(row.update_time_ns),
        etag=etags.etag(name, row.create_time_ns, row.changes),
    )
