"""What names mean now: which version a reference names, and which deployments stand on a version."""

from sqlalchemy import Connection, bindparam, func, select

from octavo.errors import FailedPrecondition, InvalidArgument, NotFound
from octavo.v1 import errors_pb2
from services.registry import names
from services.registry.names import Reference
from services.registry.schema import ALIASES, DEPLOYMENT_TARGETS, MODELS, VERSIONS

_SHOWN = 5

_BY_NUMBER = select(VERSIONS.c.number).where(
    VERSIONS.c.model == bindparam("model"), VERSIONS.c.number == bindparam("number")
)
_BY_ALIAS = select(ALIASES.c.number).where(ALIASES.c.model == bindparam("model"), ALIASES.c.alias == bindparam("alias"))
_NEWEST = select(func.max(VERSIONS.c.number)).where(VERSIONS.c.model == bindparam("model"))


def number_of(connection: Connection, reference: Reference, field: str) -> int:
    """The number of the version that `reference` names now. Raises NotFound for what is not there."""
    found = _BY_NUMBER if reference.number else _BY_ALIAS if reference.alias else _NEWEST
    number = connection.execute(found, reference._asdict()).scalar_one_or_none()
    if number is None:
        raise not_found(connection, reference, field)
    return int(number)


def number_of_model(connection: Connection, model: str, version: str, field: str) -> int:
    """The number in `models/{model}/versions/{number}`, which must be of this model and exist."""
    owner, number = names.version_in(version, field)
    if owner != model:
        raise InvalidArgument.field(field, f"{version} is not a version of {names.model_name(model)}")
    return number_of(connection, Reference(model, number=number), field)


def check_model(connection: Connection, model: str, field: str = "name") -> None:
    """Raises NotFound if there is no such model."""
    if not _has_model(connection, model):
        raise model_not_found(model, field)


def check_not_deployed(connection: Connection, model: str, number: int = 0) -> None:
    """Raises FailedPrecondition if a deployment stands on this version; without a number, on any of the model."""
    of_version = () if not number else (DEPLOYMENT_TARGETS.c.number == number,)
    deployments = connection.execute(
        select(DEPLOYMENT_TARGETS.c.deployment)
        .where(DEPLOYMENT_TARGETS.c.model == model, *of_version)
        .distinct()
        .order_by(DEPLOYMENT_TARGETS.c.deployment)
        .limit(_SHOWN)
    ).scalars()
    if shown := ", ".join(names.deployment_name(deployment) for deployment in deployments):
        name = names.version_name(model, number) if number else names.model_name(model)
        raise FailedPrecondition(
            errors_pb2.REASON_VERSION_IN_USE,
            f"{name} is deployed by {shown}; give them another version first, or delete them",
            resource=name,
            deployments=shown,
        )


def model_not_found(model: str, field: str) -> NotFound:
    """The error that says so."""
    name = names.model_name(model)
    description = f"there is no {name}; ListModels lists what there is"
    return NotFound(errors_pb2.REASON_MODEL_NOT_FOUND, description, violations={field: description}, model=name)


def version_not_found(model: str, number: int, newest: int | None, field: str) -> NotFound:
    """The error that says so."""
    name = names.version_name(model, number)
    hint = f"the newest is {names.version_name(model, newest)}" if newest else "the model has no versions"
    description = f"there is no {name}; {hint}"
    return NotFound(errors_pb2.REASON_VERSION_NOT_FOUND, description, violations={field: description}, version=name)


def alias_not_found(connection: Connection, model: str, alias: str, field: str) -> NotFound:
    """The error that says so, and which aliases there are."""
    there = connection.execute(
        select(ALIASES.c.alias).where(ALIASES.c.model == model).order_by(ALIASES.c.alias).limit(_SHOWN)
    ).scalars()
    hint = ", ".join(there)
    description = (
        f"{names.model_name(model)} has no alias {alias!r}; it has {hint}"
        if hint
        else f"{names.model_name(model)} has no alias {alias!r}, nor any other; SetAlias makes one"
    )
    return NotFound(
        errors_pb2.REASON_ALIAS_NOT_FOUND,
        description,
        violations={field: description},
        alias=names.alias_name(model, alias),
    )


def not_found(connection: Connection, reference: Reference, field: str) -> NotFound:
    """The error for a reference to nothing: which of model, alias and version is missing."""
    model = reference.model
    if not _has_model(connection, model):
        return model_not_found(model, field)
    if reference.alias:
        return alias_not_found(connection, model, reference.alias, field)
    newest = connection.execute(
        select(func.max(VERSIONS.c.number)).where(VERSIONS.c.model == model)
    ).scalar_one_or_none()
    return version_not_found(model, reference.number or 1, newest, field)


def _has_model(connection: Connection, model: str) -> bool:
    return connection.execute(select(MODELS.c.model).where(MODELS.c.model == model)).one_or_none() is not None
