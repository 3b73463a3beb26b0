"""Deployments: what should be served, as it is wanted. What servers make of it is in deployment_reports.

Each change of any deployment gets the next number of one sequence and is noted on the deployment itself, so that
a watch reads what changed since a number and never needs more room than there are deployments.
"""

from collections.abc import Sequence
from typing import Any

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import Connection, Row, delete, func, insert, literal, select, update

from octavo.errors import AlreadyExists, NotFound
from octavo.v1 import errors_pb2
from octavo.v1.deployments_pb2 import (
    DeleteDeploymentRequest,
    Deployment,
    DeploymentStatus,
    DeploymentTarget,
    ListDeploymentsRequest,
    ListDeploymentsResponse,
    ReportDeploymentStatusRequest,
    UpdateDeploymentRequest,
)
from services.registry import deployment_reports, deployment_targets, etags, labels, limits, masks, names, pages
from services.registry.blobs import timestamp
from services.registry.change import Change
from services.registry.schema import (
    DEPLOYMENT_REVISIONS,
    DEPLOYMENT_STATUSES,
    DEPLOYMENT_TARGETS,
    DEPLOYMENTS,
    LABELS,
)

_CHANGEABLE = ("targets", "description", "labels")
_SEQUENCE = "deployments"


def create(change: Change, deployment_id: str, wanted: Deployment) -> Deployment:
    """Asks for a model to be served from now on."""
    deployment = names.checked_id(deployment_id, "deployment_id")
    name = names.deployment_name(deployment)
    targets = deployment_targets.resolved(change.connection, wanted.targets)
    limits.check_description(wanted.description, "deployment.description")
    labels.check(wanted.labels, "deployment.labels")
    if find(change.connection, deployment) is not None:
        raise AlreadyExists(
            errors_pb2.REASON_DEPLOYMENT_EXISTS,
            f"{name} exists; choose another id, or update it",
            deployment=name,
        )
    change.connection.execute(delete(DEPLOYMENTS).where(DEPLOYMENTS.c.deployment == deployment))
    change.connection.execute(
        insert(DEPLOYMENTS).values(
            deployment=deployment,
            sequence=change.next_number(_SEQUENCE),
            is_deleted=False,
            revision=0,
            description=wanted.description,
            changes=0,
            create_time_ns=change.time_ns,
            update_time_ns=change.time_ns,
        )
    )
    labels.replace(change.connection, name, wanted.labels)
    revise(change, deployment, targets)
    change.record("deployment.created", name, {"to": deployment_targets.described(targets)})
    return get(change.connection, deployment)


def find(connection: Connection, deployment: str) -> Deployment | None:
    """The deployment, if there is one."""
    chosen = select(DEPLOYMENTS).where(DEPLOYMENTS.c.deployment == deployment, ~DEPLOYMENTS.c.is_deleted)
    rows = connection.execute(chosen).all()
    return assembled(connection, rows)[0] if rows else None


def get(connection: Connection, deployment: str, field: str = "name") -> Deployment:
    """The deployment; NotFound if there is none."""
    found = find(connection, deployment)
    if found is None:
        name = names.deployment_name(deployment)
        description = f"there is no {name}; ListDeployments lists what there is"
        raise NotFound(
            errors_pb2.REASON_DEPLOYMENT_NOT_FOUND,
            description,
            violations={field: description},
            deployment=name,
        )
    return found


def list_deployments(connection: Connection, request: ListDeploymentsRequest) -> ListDeploymentsResponse:
    """One page of the deployments, by name."""
    terms = labels.parse_filter(request.filter)
    conditions = [
        ~DEPLOYMENTS.c.is_deleted,
        *labels.holding(terms, literal("deployments/") + DEPLOYMENTS.c.deployment),
    ]
    after = pages.key_after(request, request.page_token, (str,))
    size = pages.size(request.page_size)
    chosen = select(DEPLOYMENTS).where(*conditions).order_by(DEPLOYMENTS.c.deployment).limit(size + 1)
    if after:
        chosen = chosen.where(DEPLOYMENTS.c.deployment > after[0])
    rows = connection.execute(chosen).all()
    counted = select(func.count()).select_from(DEPLOYMENTS).where(*conditions)
    shown = rows[:size]
    return ListDeploymentsResponse(
        deployments=assembled(connection, shown),
        next_page_token=pages.token(request, [shown[-1].deployment]) if len(rows) > size else "",
        total_size=connection.execute(counted).scalar_one(),
    )


def update_deployment(change: Change, request: UpdateDeploymentRequest) -> Deployment:
    """Changes what is wanted; makes the deployment when there is none and `allow_missing` is set."""
    wanted = request.deployment
    deployment = names.deployment_in(wanted.name, "deployment.name")
    if request.allow_missing and find(change.connection, deployment) is None:
        return create(change, deployment, wanted)
    current = get(change.connection, deployment, "deployment.name")
    etags.check(wanted.etag, current.etag, current.name)
    fields = masks.chosen(request.update_mask, wanted, _CHANGEABLE)
    facts = {"fields": ",".join(sorted(fields))}
    if "description" in fields:
        limits.check_description(wanted.description, "deployment.description")
        change.connection.execute(
            update(DEPLOYMENTS).where(DEPLOYMENTS.c.deployment == deployment).values(description=wanted.description)
        )
    if "labels" in fields:
        labels.check(wanted.labels, "deployment.labels")
        labels.replace(change.connection, current.name, wanted.labels)
    if "targets" in fields:
        targets = deployment_targets.resolved(change.connection, wanted.targets)
        facts |= {
            "from": deployment_targets.described(current.targets),
            "to": deployment_targets.described(targets),
        }
        revise(change, deployment, targets)
    else:
        touch(change, deployment)
    change.record("deployment.updated", current.name, facts)
    return get(change.connection, deployment)


def delete_deployment(change: Change, request: DeleteDeploymentRequest) -> Empty:
    """Stops serving. The row stays, so that watches learn of it."""
    deployment = names.deployment_in(request.name)
    current = get(change.connection, deployment)
    etags.check(request.etag, current.etag, current.name)
    for table in (DEPLOYMENT_TARGETS, DEPLOYMENT_STATUSES, DEPLOYMENT_REVISIONS):
        change.connection.execute(delete(table).where(table.c.deployment == deployment))
    change.connection.execute(delete(LABELS).where(LABELS.c.resource == current.name))
    change.connection.execute(update(DEPLOYMENTS).where(DEPLOYMENTS.c.deployment == deployment).values(is_deleted=True))
    touch(change, deployment)
    facts = {"from": deployment_targets.described(current.targets)}
    change.record("deployment.deleted", current.name, facts)
    return Empty()


def report(change: Change, request: ReportDeploymentStatusRequest) -> Deployment:
    """Keeps what a server says."""
    deployment = names.deployment_in(request.name)
    current = get(change.connection, deployment)
    deployment_reports.report(change, deployment, current.revision, request.status)
    return get(change.connection, deployment)


def follow_alias(change: Change, model: str, alias: str) -> None:
    """Makes a new revision of every deployment that follows an alias which has moved."""
    for deployment in following(change.connection, model, alias):
        current = get(change.connection, deployment)
        targets = deployment_targets.follow(change.connection, current.targets)
        revise(change, deployment, targets)
        facts = {
            "alias": names.alias_name(model, alias),
            "from": deployment_targets.described(current.targets),
            "to": deployment_targets.described(targets),
        }
        change.record("deployment.followed", current.name, facts)


def following(connection: Connection, model: str, alias: str) -> list[str]:
    """The ids of the deployments that follow an alias."""
    chosen = select(DEPLOYMENT_TARGETS.c.deployment).where(
        DEPLOYMENT_TARGETS.c.model == model, DEPLOYMENT_TARGETS.c.alias == alias
    )
    return list(connection.execute(chosen.distinct().order_by(DEPLOYMENT_TARGETS.c.deployment)).scalars())


def revise(change: Change, deployment: str, targets: Sequence[DeploymentTarget]) -> None:
    """Makes these the targets, as the next revision. Revisions are not counted again after a deletion."""
    revision = change.next_number(names.deployment_name(deployment))
    connection = change.connection
    connection.execute(
        insert(DEPLOYMENT_REVISIONS).values(
            deployment=deployment,
            revision=revision,
            record=Deployment(targets=targets).SerializeToString(),
        )
    )
    deployment_targets.replace(connection, deployment, targets)
    connection.execute(update(DEPLOYMENTS).where(DEPLOYMENTS.c.deployment == deployment).values(revision=revision))
    touch(change, deployment)


def touch(change: Change, deployment: str) -> None:
    """Notes a change of the deployment, for etags and watches."""
    change.connection.execute(
        update(DEPLOYMENTS)
        .where(DEPLOYMENTS.c.deployment == deployment)
        .values(
            sequence=change.next_number(_SEQUENCE),
            changes=DEPLOYMENTS.c.changes + 1,
            update_time_ns=change.time_ns,
        )
    )


def assembled(connection: Connection, rows: Sequence[Row[Any]]) -> list[Deployment]:
    """The deployments of these rows, with what other tables know of them."""
    ids = [row.deployment for row in rows]
    words = labels.read(connection, [names.deployment_name(deployment) for deployment in ids])
    targets = {
        row.deployment: Deployment.FromString(row.record)
        for row in connection.execute(
            select(DEPLOYMENT_REVISIONS.c.deployment, DEPLOYMENT_REVISIONS.c.record)
            .join(
                DEPLOYMENTS,
                (DEPLOYMENTS.c.deployment == DEPLOYMENT_REVISIONS.c.deployment)
                & (DEPLOYMENTS.c.revision == DEPLOYMENT_REVISIONS.c.revision),
            )
            .where(DEPLOYMENTS.c.deployment.in_(ids))
        )
    }
    reports = deployment_reports.read(connection, ids)
    return [_deployment(row, targets.get(row.deployment), words, reports.get(row.deployment, [])) for row in rows]


def _deployment(
    row: Row[Any],
    revision: Deployment | None,
    words: dict[str, dict[str, str]],
    statuses: list[DeploymentStatus],
) -> Deployment:
    name = names.deployment_name(row.deployment)
    return Deployment(
        name=name,
        targets=revision.targets if revision else (),
        description=row.description,
        labels=words.get(name, {}),
        revision=row.revision,
        state=deployment_reports.worst(statuses, row.revision),
        statuses=statuses,
        create_time=timestamp(row.create_time_ns),
        update_time=timestamp(row.update_time_ns),
        etag=etags.etag(name, row.create_time_ns, row.changes),
    )
