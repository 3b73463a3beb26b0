"""A deployment's revisions: giving all traffic to one version, and returning to what was before."""

from sqlalchemy import Connection, func, select

from octavo.errors import FailedPrecondition, InvalidArgument, NotFound, OctavoError
from octavo.v1 import errors_pb2
from octavo.v1.deployments_pb2 import Deployment, DeploymentTarget, PromoteRequest, RollbackRequest
from services.registry import deployment_targets, deployments, etags, names, references
from services.registry.change import Change
from services.registry.schema import DEPLOYMENT_REVISIONS


def promote(change: Change, request: PromoteRequest) -> Deployment:
    """Gives all traffic to one of the targets, or to a new version, held as it is now: precision and on demand."""
    deployment = names.deployment_in(request.name)
    current = deployments.get(change.connection, deployment)
    etags.check(request.etag, current.etag, current.name)
    reference = names.reference_in(request.version, "version")
    number = references.number_of(change.connection, reference, "version")
    version = names.version_name(reference.model, number)
    serving = [target for target in current.targets if target.resolved_version == version]
    like = (serving or current.targets)[0]
    wanted = DeploymentTarget(version=request.version, weight=1, precision=like.precision, on_demand=like.on_demand)
    targets = deployment_targets.resolved(change.connection, [wanted], "targets")
    return _revised(change, "deployment.promoted", current, targets)


def rollback(change: Change, request: RollbackRequest) -> Deployment:
    """Returns to the versions that an earlier revision answered with.

    A target that followed an alias which means another version by now is pinned to the version it meant then:
    to follow it again would be no return.
    """
    deployment = names.deployment_in(request.name)
    current = deployments.get(change.connection, deployment)
    etags.check(request.etag, current.etag, current.name)
    earlier = _earlier(change.connection, deployment, request.revision, current)
    wanted = [_pinned(change.connection, target) for target in earlier.targets]
    targets = deployment_targets.follow(change.connection, wanted, "revision")
    return _revised(change, "deployment.rolled_back", current, targets)


def _revised(change: Change, action: str, current: Deployment, targets: list[DeploymentTarget]) -> Deployment:
    deployment = names.deployment_in(current.name)
    deployments.revise(change, deployment, targets)
    facts = {
        "from": deployment_targets.described(current.targets),
        "to": deployment_targets.described(targets),
    }
    change.record(action, current.name, facts)
    return deployments.get(change.connection, deployment)


def _earlier(connection: Connection, deployment: str, revision: int, current: Deployment) -> Deployment:
    if not 0 <= revision < current.revision:
        raise InvalidArgument.field(
            "revision",
            f"{revision} is not before the present revision {current.revision}; 0 is the one before it",
        )
    of_deployment = DEPLOYMENT_REVISIONS.c.deployment == deployment
    if not revision:
        before = select(func.max(DEPLOYMENT_REVISIONS.c.revision)).where(
            of_deployment, DEPLOYMENT_REVISIONS.c.revision < current.revision
        )
        revision = connection.execute(before).scalar_one() or 0
    chosen = select(DEPLOYMENT_REVISIONS.c.record).where(of_deployment, DEPLOYMENT_REVISIONS.c.revision == revision)
    record = connection.execute(chosen).scalar_one_or_none()
    if record is None:
        raise _no_such_revision(current, revision)
    return Deployment.FromString(record)


def _pinned(connection: Connection, target: DeploymentTarget) -> DeploymentTarget:
    model, number = names.version_in(target.resolved_version)
    pinned = DeploymentTarget()
    pinned.CopyFrom(target)
    try:
        now = references.number_of(connection, names.reference_in(target.version), "revision")
    except NotFound:
        now = 0
    if now != number:
        pinned.version = names.version_name(model, number)
    return pinned


def _no_such_revision(current: Deployment, revision: int) -> OctavoError:
    if not revision:
        return FailedPrecondition(
            errors_pb2.REASON_REVISION_NOT_FOUND,
            f"{current.name} has had one revision only; there is nothing to return to",
            deployment=current.name,
        )
    return NotFound(
        errors_pb2.REASON_REVISION_NOT_FOUND,
        f"{current.name} has no revision {revision}",
        violations={"revision": "is not kept"},
        deployment=current.name,
        revision=revision,
    )
