"""Aliases: moved by compare-and-swap, to versions of their own model only, never from under a deployment."""

import asyncio

import pytest

from octavo.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from octavo.v1 import errors_pb2
from octavo.v1.deployments_pb2 import CreateDeploymentRequest, Deployment, DeploymentTarget
from octavo.v1.registry_pb2 import (
    Alias,
    DeleteAliasRequest,
    GetModelRequest,
    GetVersionRequest,
    ListAuditEventsRequest,
    SetAliasRequest,
)
from tests.services.registry.conftest import Registry

CHAMPION = "models/poet/aliases/champion"


async def point(registry: Registry, number: int, expected: str = "", name: str = CHAMPION) -> Alias:
    version = f"models/poet/versions/{number}"
    return await registry.registry.SetAlias(SetAliasRequest(name=name, version=version, expected_version=expected))


async def test_an_alias_is_made_and_moved_and_seen_from_both_sides(registry: Registry) -> None:
    first, second = await registry.version(), await registry.version()
    await point(registry, 1)
    moved = await point(registry, 2)
    assert (moved.name, moved.version) == (CHAMPION, second.name)
    model = await registry.registry.GetModel(GetModelRequest(name="models/poet"))
    assert list(model.aliases) == [moved]
    assert not (await registry.registry.GetVersion(GetVersionRequest(name=first.name))).aliases
    assert list((await registry.registry.GetVersion(GetVersionRequest(name=second.name))).aliases) == ["champion"]


async def test_an_alias_moves_only_from_where_it_was_expected(registry: Registry) -> None:
    await registry.version()
    await registry.version()
    await point(registry, 1, expected="none")
    for wrong in ("none", "models/poet/versions/2"):
        with pytest.raises(Aborted) as refused:
            await point(registry, 2, expected=wrong)
        assert refused.value.metadata["version"] == "models/poet/versions/1"
    await point(registry, 2, expected="models/poet/versions/1")
    with pytest.raises(InvalidArgument):
        await point(registry, 2, expected="nonsense")


async def test_of_many_who_expect_the_same_one_moves_it(registry: Registry) -> None:
    for _ in range(6):
        await registry.version()
    await point(registry, 1)
    moves = [point(registry, number, expected="models/poet/versions/1") for number in range(2, 7)]
    results = await asyncio.gather(*moves, return_exceptions=True)
    assert sum(isinstance(result, Alias) for result in results) == 1
    assert sum(isinstance(result, Aborted) for result in results) == 4


async def test_an_alias_points_only_at_what_exists_in_its_model(registry: Registry) -> None:
    await registry.version()
    await registry.version("critic")
    with pytest.raises(NotFound) as refused:
        await point(registry, 9)
    assert refused.value.reason == errors_pb2.REASON_VERSION_NOT_FOUND
    with pytest.raises(InvalidArgument, match="not a version of models/poet"):
        await registry.registry.SetAlias(SetAliasRequest(name=CHAMPION, version="models/critic/versions/1"))
    with pytest.raises(NotFound):
        await registry.registry.SetAlias(
            SetAliasRequest(name="models/nobody/aliases/a", version="models/nobody/versions/1")
        )


@pytest.mark.parametrize("alias", ["latest", "v3", "V3", "a b", "../x", ""])
async def test_an_alias_that_reads_like_something_else_is_refused(registry: Registry, alias: str) -> None:
    await registry.version()
    with pytest.raises(InvalidArgument) as refused:
        await point(registry, 1, name=f"models/poet/aliases/{alias}")
    assert list(refused.value.violations) == ["name"]


async def test_an_alias_is_deleted_once(registry: Registry) -> None:
    await registry.version()
    await point(registry, 1)
    await registry.registry.DeleteAlias(DeleteAliasRequest(name=CHAMPION))
    with pytest.raises(NotFound) as refused:
        await registry.registry.DeleteAlias(DeleteAliasRequest(name=CHAMPION))
    assert refused.value.reason == errors_pb2.REASON_ALIAS_NOT_FOUND


async def test_an_alias_that_a_deployment_follows_is_not_deleted(registry: Registry) -> None:
    await registry.version()
    await point(registry, 1)
    wanted = Deployment(targets=[DeploymentTarget(version="models/poet@champion")])
    await registry.deployments.CreateDeployment(CreateDeploymentRequest(deployment_id="poet", deployment=wanted))
    with pytest.raises(FailedPrecondition, match="deployments/poet"):
        await registry.registry.DeleteAlias(DeleteAliasRequest(name=CHAMPION))


async def test_which_version_it_meant_when_is_in_the_trail(registry: Registry) -> None:
    await registry.version()
    await registry.version()
    await point(registry, 1)
    await point(registry, 2)
    await point(registry, 2)
    request = ListAuditEventsRequest(resource_prefix=CHAMPION)
    events = (await registry.registry.ListAuditEvents(request)).events
    assert [(event.action, dict(event.details)) for event in events] == [
        ("alias.moved", {"from": "models/poet/versions/1", "to": "models/poet/versions/2"}),
        ("alias.created", {"to": "models/poet/versions/1"}),
    ]
