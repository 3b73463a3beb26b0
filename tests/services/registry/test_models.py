"""Models: made, found, changed and deleted, with every refusal by field and reason."""

from collections.abc import Callable

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from octavo.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from octavo.v1 import errors_pb2
from octavo.v1.registry_pb2 import (
    CreateModelRequest,
    DeleteModelRequest,
    GetModelRequest,
    GetVersionRequest,
    ListModelsRequest,
    Model,
    SetAliasRequest,
    UpdateModelRequest,
)
from tests.services.registry.conftest import Registry


async def make(registry: Registry, model_id: str = "poet", **fields: object) -> Model:
    request = CreateModelRequest(model=Model(**fields), model_id=model_id)
    return await registry.registry.CreateModel(request)


async def test_a_model_is_made_and_read_back(registry: Registry) -> None:
    made = await make(registry, description="writes", labels={"team": "verse", "tier": "1"})
    assert made.name == "models/poet"
    assert made.labels == {"team": "verse", "tier": "1"}
    assert made.create_time == made.update_time
    assert not made.latest_version
    assert await registry.registry.GetModel(GetModelRequest(name="models/poet")) == made


async def test_a_name_is_taken_once(registry: Registry) -> None:
    await make(registry)
    with pytest.raises(AlreadyExists) as refused:
        await make(registry)
    assert refused.value.reason == errors_pb2.REASON_MODEL_EXISTS


@pytest.mark.parametrize("model_id", ["", "../x", "Poet", "1poet", "poet-", "p" * 64, "po et", "poé", "poet\n"])
async def test_a_name_that_is_none_is_refused(registry: Registry, model_id: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await make(registry, model_id)
    assert list(refused.value.violations) == ["model_id"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"description": "x" * 2001}, "model.description"),
        ({"labels": {str(index): "" for index in range(65)}}, "model.labels"),
        ({"labels": {"k" * 64: ""}}, f"model.labels['{'k' * 63}']"),
        ({"labels": {"key": "v" * 256}}, "model.labels['key']"),
        ({"labels": {"": "value"}}, "model.labels['']"),
    ],
)
async def test_too_much_is_refused_by_field(registry: Registry, fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await make(registry, **fields)
    assert list(refused.value.violations) == [field]
    with pytest.raises(NotFound):
        await registry.registry.GetModel(GetModelRequest(name="models/poet"))


async def test_an_unknown_model_is_not_found(registry: Registry) -> None:
    with pytest.raises(NotFound) as refused:
        await registry.registry.GetModel(GetModelRequest(name="models/nobody"))
    assert refused.value.reason == errors_pb2.REASON_MODEL_NOT_FOUND
    assert refused.value.metadata == {"model": "models/nobody"}


async def test_only_the_fields_of_the_mask_change(registry: Registry) -> None:
    made = await make(registry, description="old", labels={"a": "1"})
    changed = Model(name="models/poet", description="new", labels={"b": "2"})
    request = UpdateModelRequest(model=changed, update_mask=FieldMask(paths=["description", "update_time"]))
    after = await registry.registry.UpdateModel(request)
    assert (after.description, dict(after.labels)) == ("new", {"a": "1"})
    assert after.etag != made.etag
    assert after.update_time.ToNanoseconds() > made.update_time.ToNanoseconds()


async def test_without_a_mask_what_is_set_changes_and_a_star_replaces_all(registry: Registry) -> None:
    await make(registry, description="old", labels={"a": "1"})
    set_only = UpdateModelRequest(model=Model(name="models/poet", labels={"b": "2"}))
    after = await registry.registry.UpdateModel(set_only)
    assert (after.description, dict(after.labels)) == ("old", {"b": "2"})
    everything = UpdateModelRequest(model=Model(name="models/poet"), update_mask=FieldMask(paths=["*"]))
    after = await registry.registry.UpdateModel(everything)
    assert (after.description, dict(after.labels)) == ("", {})


@pytest.mark.parametrize("path", ["nonsense", "labels.a", "description.x", ""])
async def test_a_mask_of_fields_that_cannot_change_is_refused(registry: Registry, path: str) -> None:
    await make(registry)
    with pytest.raises(InvalidArgument) as refused:
        await registry.registry.UpdateModel(
            UpdateModelRequest(model=Model(name="models/poet"), update_mask=FieldMask(paths=[path]))
        )
    assert "description, labels can" in refused.value.violations["update_mask"]


async def test_an_update_with_an_old_etag_is_aborted_and_changes_nothing(registry: Registry) -> None:
    made = await make(registry)
    first = Model(name="models/poet", description="first", etag=made.etag)
    kept = await registry.registry.UpdateModel(UpdateModelRequest(model=first))
    second = Model(name="models/poet", description="second", etag=made.etag)
    with pytest.raises(Aborted) as refused:
        await registry.registry.UpdateModel(UpdateModelRequest(model=second))
    assert refused.value.reason == errors_pb2.REASON_ETAG_MISMATCH
    assert refused.value.metadata["etag"] == kept.etag
    assert (await registry.registry.GetModel(GetModelRequest(name="models/poet"))) == kept


async def test_a_model_with_versions_is_deleted_only_by_force(registry: Registry) -> None:
    version = await registry.version()
    alias = SetAliasRequest(name="models/poet/aliases/champion", version=version.name)
    await registry.registry.SetAlias(alias)
    with pytest.raises(FailedPrecondition) as refused:
        await registry.registry.DeleteModel(DeleteModelRequest(name="models/poet"))
    assert refused.value.reason == errors_pb2.REASON_MODEL_NOT_EMPTY
    await registry.registry.DeleteModel(DeleteModelRequest(name="models/poet", force=True))
    for call, request in (
        (registry.registry.GetModel, GetModelRequest(name="models/poet")),
        (registry.registry.GetVersion, GetVersionRequest(name=version.name)),
    ):
        with pytest.raises(NotFound):
            await call(request)


async def test_a_model_made_again_goes_on_counting(registry: Registry) -> None:
    await registry.version()
    await registry.registry.DeleteModel(DeleteModelRequest(name="models/poet", force=True))
    made = await make(registry)
    assert not made.aliases
    assert (await registry.version()).name == "models/poet/versions/2"


async def test_the_list_is_paged_by_name_and_counted(registry: Registry) -> None:
    for index in (3, 1, 4, 0, 2):
        await make(registry, f"m{index}")
    names, token, sizes = [], "", set()
    while True:
        page = await registry.registry.ListModels(ListModelsRequest(page_size=2, page_token=token))
        names.extend(model.name for model in page.models)
        sizes.add(page.total_size)
        token = page.next_page_token
        if not token:
            break
    assert names == [f"models/m{index}" for index in range(5)]
    assert sizes == {5}


async def test_the_list_is_filtered_by_labels(registry: Registry) -> None:
    await make(registry, "a", labels={"team": "verse", "tier": "1"})
    await make(registry, "b", labels={"team": "verse", "tier": "2"})
    await make(registry, "c", labels={"team": "prose", "tier": "1"})
    filtered = ListModelsRequest(filter='labels.team = "verse" AND labels.tier = "2"')
    page = await registry.registry.ListModels(filtered)
    assert [model.name for model in page.models] == ["models/b"]
    assert page.total_size == 1


async def test_a_token_of_another_list_is_refused(registry: Registry) -> None:
    for index in range(3):
        await make(registry, f"m{index}", labels={"a": "1"})
    page = await registry.registry.ListModels(ListModelsRequest(page_size=1))
    for request in (
        ListModelsRequest(page_token=page.next_page_token, filter='labels.a = "1"'),
        ListModelsRequest(page_token=page.next_page_token[:-4]),
        ListModelsRequest(page_token="nonsense"),
        ListModelsRequest(page_token="W10"),
        ListModelsRequest(page_size=-1),
    ):
        with pytest.raises(InvalidArgument):
            await registry.registry.ListModels(request)
    other_size = ListModelsRequest(page_token=page.next_page_token, page_size=50)
    assert len((await registry.registry.ListModels(other_size)).models) == 2


async def test_validate_only_says_what_would_be_and_makes_nothing(registry: Registry) -> None:
    request = CreateModelRequest(model=Model(description="x"), model_id="poet", validate_only=True)
    assert (await registry.registry.CreateModel(request)).name == "models/poet"
    with pytest.raises(NotFound):
        await registry.registry.GetModel(GetModelRequest(name="models/poet"))
    await make(registry)
    with pytest.raises(AlreadyExists):
        await registry.registry.CreateModel(request)


async def test_a_request_sent_again_gets_the_first_answer(registry: Registry, request_id: Callable[[], str]) -> None:
    request = CreateModelRequest(model=Model(description="x"), model_id="poet", request_id=request_id())
    first = await registry.registry.CreateModel(request)
    assert await registry.registry.CreateModel(request) == first
    request.model.description = "y"
    with pytest.raises(InvalidArgument) as refused:
        await registry.registry.CreateModel(request)
    assert refused.value.reason == errors_pb2.REASON_REQUEST_ID_REUSED
    request.request_id = "not-a-uuid"
    with pytest.raises(InvalidArgument) as refused:
        await registry.registry.CreateModel(request)
    assert list(refused.value.violations) == ["request_id"]
