"""Aliases: movable names for versions. Moving one moves every deployment that follows it."""

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import delete, insert, select, update

from octavo.errors import Aborted, FailedPrecondition
from octavo.v1 import errors_pb2
from octavo.v1.registry_pb2 import Alias, DeleteAliasRequest, SetAliasRequest
from services.registry import deployments, models, names, references
from services.registry.blobs import timestamp
from services.registry.change import Change
from services.registry.schema import ALIASES

_NONE = "none"


def set_alias(change: Change, request: SetAliasRequest) -> Alias:
    """Points an alias at a version of its model. Aborted if it does not point where it was expected to."""
    model, alias = names.alias_in(request.name)
    names.checked_alias(alias)
    references.check_model(change.connection, model)
    number = references.number_of_model(change.connection, model, request.version, "version")
    current = _number(change, model, alias)
    _check_expected(request, names.version_name(model, current) if current else _NONE)
    if current is None:
        values = {"model": model, "alias": alias, "number": number, "update_time_ns": change.time_ns}
        change.connection.execute(insert(ALIASES).values(values))
        change.record("alias.created", request.name, {"to": request.version})
    elif current != number:
        change.connection.execute(
            update(ALIASES)
            .where(ALIASES.c.model == model, ALIASES.c.alias == alias)
            .values(number=number, update_time_ns=change.time_ns)
        )
        facts = {"from": names.version_name(model, current), "to": request.version}
        change.record("alias.moved", request.name, facts)
    if current != number:
        models.touch(change, model)
        deployments.follow_alias(change, model, alias)
    return _alias(change, model, alias)


def delete_alias(change: Change, request: DeleteAliasRequest) -> Empty:
    """Removes an alias that no deployment follows."""
    model, alias = names.alias_in(request.name)
    references.check_model(change.connection, model)
    number = _number(change, model, alias)
    if number is None:
        raise references.alias_not_found(change.connection, model, alias, "name")
    if followers := deployments.following(change.connection, model, alias):
        shown = ", ".join(names.deployment_name(deployment) for deployment in followers)
        raise FailedPrecondition(
            errors_pb2.REASON_VERSION_IN_USE,
            f"{request.name} is followed by {shown}; give them a version first, or delete them",
            alias=request.name,
            deployments=shown,
        )
    change.connection.execute(delete(ALIASES).where(ALIASES.c.model == model, ALIASES.c.alias == alias))
    models.touch(change, model)
    change.record("alias.deleted", request.name, {"from": names.version_name(model, number)})
    return Empty()


def _number(change: Change, model: str, alias: str) -> int | None:
    found = select(ALIASES.c.number).where(ALIASES.c.model == model, ALIASES.c.alias == alias)
    return change.connection.execute(found).scalar_one_or_none()


def _alias(change: Change, model: str, alias: str) -> Alias:
    found = select(ALIASES).where(ALIASES.c.model == model, ALIASES.c.alias == alias)
    row = change.connection.execute(found).one()
    return Alias(
        name=names.alias_name(model, alias),
        version=names.version_name(model, row.number),
        update_time=timestamp(row.update_time_ns),
    )


def _check_expected(request: SetAliasRequest, current: str) -> None:
    expected = request.expected_version
    if expected and expected != _NONE:
        names.version_in(expected, "expected_version")
    if expected and expected != current:
        raise Aborted(
            errors_pb2.REASON_ETAG_MISMATCH,
            f"{request.name} points at {current}, not at {expected}: somebody moved it; read it again, then retry",
            alias=request.name,
            version=current,
        )
