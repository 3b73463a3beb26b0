"""Deployments: what is wanted, what is reported, and what a watch tells of both."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from octavo.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from octavo.v1 import errors_pb2
from octavo.v1.deployments_pb2 import (
    CreateDeploymentRequest,
    DeleteDeploymentRequest,
    Deployment,
    DeploymentEvent,
    DeploymentState,
    DeploymentStatus,
    DeploymentTarget,
    GetDeploymentRequest,
    ListDeploymentsRequest,
    Precision,
    PromoteRequest,
    ReportDeploymentStatusRequest,
    RollbackRequest,
    UpdateDeploymentRequest,
    WatchDeploymentsRequest,
)
from octavo.v1.registry_pb2 import DeleteModelRequest, DeleteVersionRequest, SetAliasRequest
from tests.services.registry.conftest import Registry

READY = DeploymentState.DEPLOYMENT_STATE_READY
FAILED = DeploymentState.DEPLOYMENT_STATE_FAILED
LOADING = DeploymentState.DEPLOYMENT_STATE_LOADING
PENDING = DeploymentState.DEPLOYMENT_STATE_PENDING


@pytest.fixture
async def filled(registry: Registry) -> Registry:
    """Three versions of `poet`; `champion` is the first."""
    for _ in range(3):
        await registry.version()
    await champion(registry, 1)
    return registry


async def champion(registry: Registry, number: int) -> None:
    version = f"models/poet/versions/{number}"
    await registry.registry.SetAlias(SetAliasRequest(name="models/poet/aliases/champion", version=version))


def target(reference: str, weight: int = 0, **fields: object) -> DeploymentTarget:
    return DeploymentTarget(version=f"models/poet{reference}", weight=weight, **fields)


async def deploy(registry: Registry, *targets: DeploymentTarget, deployment_id: str = "poet") -> Deployment:
    request = CreateDeploymentRequest(deployment_id=deployment_id, deployment=Deployment(targets=targets))
    return await registry.deployments.CreateDeployment(request)


async def get(registry: Registry) -> Deployment:
    return await registry.deployments.GetDeployment(GetDeploymentRequest(name="deployments/poet"))


def resolved(deployment: Deployment) -> list[str]:
    return [target.resolved_version.rpartition("/")[2] for target in deployment.targets]


async def report(registry: Registry, server: str, revision: int, state: int) -> Deployment:
    status = DeploymentStatus(server=server, revision=revision, state=state)
    return await registry.deployments.ReportDeploymentStatus(
        ReportDeploymentStatusRequest(name="deployments/poet", status=status)
    )


async def test_a_deployment_is_made_with_its_targets_resolved(filled: Registry) -> None:
    made = await deploy(filled, target("@champion", 90), target("/versions/2", 10, precision=Precision.PRECISION_INT8))
    assert made.name == "deployments/poet"
    assert resolved(made) == ["1", "2"]
    assert (made.revision, made.state) == (1, PENDING)
    assert await get(filled) == made
    with pytest.raises(AlreadyExists):
        await deploy(filled, target("@champion"))


@pytest.mark.parametrize(
    ("targets", "field"),
    [
        ([], "deployment.targets"),
        ([target("/versions/1", 1)] * 9, "deployment.targets"),
        ([target("")], "deployment.targets[0].version"),
        ([target("/versions/1", -1)], "deployment.targets[0].weight"),
        ([target("/versions/1"), target("/versions/2")], "deployment.targets"),
        ([target("/versions/1", 1), target("@champion", 1)], "deployment.targets"),
        ([target("/versions/1", precision=99)], "deployment.targets[0].precision"),
        ([target("/../1")], "deployment.targets[0].version"),
    ],
)
async def test_targets_that_cannot_be_are_refused_by_field(
    filled: Registry, targets: list[DeploymentTarget], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await deploy(filled, *targets)
    assert list(refused.value.violations) == [field]


async def test_what_is_not_there_is_not_deployed(filled: Registry) -> None:
    for reference, reason in (
        ("/versions/9", errors_pb2.REASON_VERSION_NOT_FOUND),
        ("@nobody", errors_pb2.REASON_ALIAS_NOT_FOUND),
    ):
        with pytest.raises(NotFound) as refused:
            await deploy(filled, target(reference))
        assert refused.value.reason == reason
    with pytest.raises(NotFound):
        await get(filled)


async def test_what_is_deployed_is_not_deleted(filled: Registry) -> None:
    await deploy(filled, target("/versions/2"))
    for request in (
        filled.registry.DeleteVersion(DeleteVersionRequest(name="models/poet/versions/2")),
        filled.registry.DeleteModel(DeleteModelRequest(name="models/poet", force=True)),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            await request
        assert refused.value.reason == errors_pb2.REASON_VERSION_IN_USE
        assert "deployments/poet" in refused.value.message


async def test_only_new_targets_make_a_revision(filled: Registry) -> None:
    made = await deploy(filled, target("/versions/1"))
    described = Deployment(name=made.name, description="new", labels={"a": "b"}, etag=made.etag)
    after = await filled.deployments.UpdateDeployment(UpdateDeploymentRequest(deployment=described))
    assert (after.revision, after.description, resolved(after)) == (1, "new", ["1"])
    with pytest.raises(Aborted):
        await filled.deployments.UpdateDeployment(UpdateDeploymentRequest(deployment=described))
    wanted = Deployment(name=made.name, targets=[target("/versions/2")])
    mask = FieldMask(paths=["targets"])
    after = await filled.deployments.UpdateDeployment(UpdateDeploymentRequest(deployment=wanted, update_mask=mask))
    assert (after.revision, after.description, resolved(after)) == (2, "new", ["2"])


async def test_an_update_may_make_what_is_missing(filled: Registry) -> None:
    wanted = Deployment(name="deployments/poet", targets=[target("/versions/2")])
    with pytest.raises(NotFound):
        await filled.deployments.UpdateDeployment(UpdateDeploymentRequest(deployment=wanted))
    made = await filled.deployments.UpdateDeployment(UpdateDeploymentRequest(deployment=wanted, allow_missing=True))
    assert (made.revision, resolved(made)) == (1, ["2"])


async def test_moving_an_alias_makes_a_revision_of_each_deployment_that_follows_it(filled: Registry) -> None:
    await deploy(filled, target("@champion"))
    await deploy(filled, target("/versions/1"), deployment_id="pinned")
    await champion(filled, 3)
    assert ((await get(filled)).revision, resolved(await get(filled))) == (2, ["3"])
    pinned = await filled.deployments.GetDeployment(GetDeploymentRequest(name="deployments/pinned"))
    assert pinned.revision == 1


async def test_a_canary_becomes_the_champion_beside_it(filled: Registry) -> None:
    await deploy(filled, target("@champion", 90), target("/versions/2", 10))
    await champion(filled, 2)
    assert resolved(await get(filled)) == ["2", "2"]


async def test_the_state_is_the_worst_that_is_reported_of_the_present_revision(filled: Registry) -> None:
    await deploy(filled, target("@champion"))
    assert (await report(filled, "a", 1, READY)).state == READY
    assert (await report(filled, "b", 1, LOADING)).state == LOADING
    assert (await report(filled, "c", 1, FAILED)).state == FAILED
    await champion(filled, 2)
    assert (await get(filled)).state == PENDING
    after = await report(filled, "a", 2, READY)
    assert after.state == READY
    assert [status.revision for status in after.statuses] == [2, 1, 1]
    with pytest.raises(InvalidArgument) as refused:
        await report(filled, "a", 3, READY)
    assert list(refused.value.violations) == ["status.revision"]


async def test_reports_change_neither_etag_nor_trail(filled: Registry) -> None:
    made = await deploy(filled, target("@champion"))
    after = await report(filled, "a", 1, READY)
    assert (after.etag, after.update_time) == (made.etag, made.update_time)


async def test_the_reports_of_the_longest_silent_servers_give_way(filled: Registry) -> None:
    await deploy(filled, target("@champion"))
    for index in range(66):
        after = await report(filled, f"server-{index:02}", 1, READY)
    assert [status.server for status in after.statuses] == [f"server-{index:02}" for index in range(2, 66)]


async def test_promotion_gives_everything_to_one_version_in_the_precision_it_had(filled: Registry) -> None:
    await deploy(filled, target("/versions/1", 90), target("/versions/2", 10, precision=Precision.PRECISION_INT8))
    request = PromoteRequest(name="deployments/poet", version="models/poet/versions/2")
    after = await filled.deployments.Promote(request)
    assert (after.revision, resolved(after)) == (2, ["2"])
    assert after.targets[0].precision == Precision.PRECISION_INT8
    request = PromoteRequest(name="deployments/poet", version="models/poet@champion")
    assert (await filled.deployments.Promote(request)).targets[0].version == "models/poet@champion"


async def test_what_is_held_on_demand_stays_so_when_it_is_promoted_and_rolled_back(filled: Registry) -> None:
    await deploy(filled, target("/versions/1", 90, on_demand=True), target("/versions/2", 10))
    before = await filled.deployments.GetDeployment(GetDeploymentRequest(name="deployments/poet"))
    assert [entry.on_demand for entry in before.targets] == [True, False]
    request = PromoteRequest(name="deployments/poet", version="models/poet/versions/1")
    assert (await filled.deployments.Promote(request)).targets[0].on_demand
    back = await filled.deployments.Rollback(RollbackRequest(name="deployments/poet"))
    assert [entry.on_demand for entry in back.targets] == [True, False]


async def test_rollback_returns_to_what_answered_before(filled: Registry) -> None:
    await deploy(filled, target("@champion"))
    with pytest.raises(FailedPrecondition):
        await filled.deployments.Rollback(RollbackRequest(name="deployments/poet"))
    await champion(filled, 3)
    back = await filled.deployments.Rollback(RollbackRequest(name="deployments/poet"))
    assert (back.revision, resolved(back)) == (3, ["1"])
    assert back.targets[0].version == "models/poet/versions/1"
    forth = await filled.deployments.Rollback(RollbackRequest(name="deployments/poet", revision=2))
    assert (forth.revision, resolved(forth)) == (4, ["3"])
    assert forth.targets[0].version == "models/poet@champion"
    for wrong in (4, 99, -1):
        with pytest.raises(InvalidArgument):
            await filled.deployments.Rollback(RollbackRequest(name="deployments/poet", revision=wrong))


async def test_a_deployment_made_again_goes_on_counting_revisions(filled: Registry) -> None:
    await deploy(filled, target("/versions/1"))
    await filled.deployments.DeleteDeployment(DeleteDeploymentRequest(name="deployments/poet"))
    with pytest.raises(NotFound):
        await get(filled)
    assert (await filled.deployments.ListDeployments(ListDeploymentsRequest())).total_size == 0
    assert (await deploy(filled, target("/versions/1"))).revision == 2


async def take(events: AsyncIterator[DeploymentEvent], count: int) -> list[DeploymentEvent]:
    taken = []
    async with asyncio.timeout(20):
        async for event in events:
            taken.append(event)
            if len(taken) == count:
                break
    return taken


def told(event: DeploymentEvent) -> object:
    change = event.WhichOneof("change")
    return (event.updated.name, resolved(event.updated)) if change == "updated" else (change, event.deleted)


async def test_a_watch_begins_with_all_and_goes_on_with_changes(filled: Registry) -> None:
    await deploy(filled, target("@champion"))
    await deploy(filled, target("/versions/2"), deployment_id="other")
    watch = filled.deployments.WatchDeployments(WatchDeploymentsRequest())
    beginning = await take(watch, 3)
    assert [told(event) for event in beginning] == [
        ("deployments/poet", ["1"]),
        ("deployments/other", ["2"]),
        ("snapshot_complete", ""),
    ]
    following = asyncio.ensure_future(take(watch, 2))
    await champion(filled, 3)
    await filled.deployments.DeleteDeployment(DeleteDeploymentRequest(name="deployments/other"))
    changes = await following
    assert [told(event) for event in changes] == [("deployments/poet", ["3"]), ("deleted", "deployments/other")]
    assert changes[0].updated.revision == 2
    sequences = [event.sequence for event in (*beginning, *changes)]
    assert sequences == sorted(sequences)


async def test_a_watch_goes_on_after_a_number(filled: Registry) -> None:
    await deploy(filled, target("@champion"))
    await deploy(filled, target("/versions/2"), deployment_id="other")
    [*_, complete] = await take(filled.deployments.WatchDeployments(WatchDeploymentsRequest()), 3)
    await champion(filled, 2)
    await champion(filled, 3)
    resumed = filled.deployments.WatchDeployments(WatchDeploymentsRequest(after_sequence=complete.sequence))
    assert [told(event) for event in await take(resumed, 1)] == [("deployments/poet", ["3"])]


async def test_a_watch_from_a_number_that_never_was_begins_with_all(filled: Registry) -> None:
    await deploy(filled, target("@champion"))
    watch = filled.deployments.WatchDeployments(WatchDeploymentsRequest(after_sequence=1_000_000))
    assert [told(event)[0] for event in await take(watch, 2)] == ["deployments/poet", "snapshot_complete"]
