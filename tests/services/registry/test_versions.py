"""Versions: registered whole, numbered once, immutable but for what describes them."""

import asyncio
import math
from collections.abc import Callable

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct

from octavo.errors import FailedPrecondition, InvalidArgument, NotFound
from octavo.v1 import errors_pb2
from octavo.v1.registry_pb2 import (
    CompareVersionsRequest,
    CreateVersionRequest,
    DeleteVersionRequest,
    File,
    GetModelRequest,
    GetVersionRequest,
    Lineage,
    LineageDataset,
    ListVersionsRequest,
    ResolveVersionRequest,
    SetAliasRequest,
    TensorDigest,
    UpdateVersionRequest,
    Version,
)
from tests.services.registry.conftest import Registry, blob_name

DIGEST = "sha256:" + "0123456789abcdef" * 4


async def create(registry: Registry, version: Version, **request: object) -> Version:
    return await registry.registry.CreateVersion(CreateVersionRequest(parent="models/poet", version=version, **request))


async def test_all_that_is_given_is_kept(registry: Registry) -> None:
    blob = await registry.put(b"{}")
    parity = Struct()
    parity.update({"precision": "fp32", "largest": 1e-6})
    given = Version(
        files=[File(path="onnx/config.json", blob=blob.name, size_bytes=2)],
        tensors=[TensorDigest(name="wte", digest=DIGEST)],
        family="qwen3",
        parameter_count=1_000_000,
        metrics={"validation_loss": 1.25},
        lineage=Lineage(
            job="jobs/j-1",
            datasets=[LineageDataset(dataset="datasets/tiny/versions/1", blob=blob.name)],
            parent_version="models/poet/versions/9",
            step=100,
            seed=-7,
            specification_digest=DIGEST,
            code_version="0.1.0",
            environment_fingerprint=DIGEST,
        ),
        parity=parity,
        description="first",
        labels={"team": "verse"},
    )
    made = await create(registry, given)
    for field, value in given.ListFields():
        assert getattr(made, field.name) == value, field.name
    assert made.name == "models/poet/versions/1"
    assert made.size_bytes == 2
    assert made.manifest_digest.startswith("sha256:")
    assert await registry.registry.GetVersion(GetVersionRequest(name=made.name)) == made


async def test_the_model_is_made_with_its_first_version(registry: Registry) -> None:
    await registry.version()
    await registry.version()
    model = await registry.registry.GetModel(GetModelRequest(name="models/poet"))
    assert model.latest_version == "models/poet/versions/2"
    assert model.version_count == 2


async def test_nothing_is_made_when_a_blob_is_missing(registry: Registry) -> None:
    there = await registry.put(b"{}")
    files = [
        File(path="a", blob=there.name, size_bytes=2),
        File(path="b", blob=blob_name(b"missing"), size_bytes=7),
    ]
    with pytest.raises(NotFound) as refused:
        await create(registry, Version(files=files))
    assert refused.value.reason == errors_pb2.REASON_BLOB_NOT_FOUND
    assert list(refused.value.violations) == ["version.files[1].blob"]
    with pytest.raises(NotFound):
        await registry.registry.GetModel(GetModelRequest(name="models/poet"))


async def test_a_size_that_is_not_the_blobs_is_refused(registry: Registry) -> None:
    blob = await registry.put(b"{}")
    with pytest.raises(InvalidArgument) as refused:
        await create(registry, Version(files=[File(path="a", blob=blob.name, size_bytes=3)]))
    assert refused.value.reason == errors_pb2.REASON_SIZE_MISMATCH
    assert list(refused.value.violations) == ["version.files[0].size_bytes"]


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/.", "a\\b", "C:/x", "a\nb", "x" * 256, "a/", "\u202ea"],
)
async def test_a_path_that_could_leave_the_bundle_is_refused(registry: Registry, path: str) -> None:
    blob = await registry.put(b"{}")
    with pytest.raises(InvalidArgument) as refused:
        await create(registry, Version(files=[File(path=path, blob=blob.name, size_bytes=2)]))
    assert list(refused.value.violations) == ["version.files[0].path"]


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("x/y/z", "x/y")])
async def test_files_that_cannot_lie_side_by_side_are_refused(registry: Registry, paths: tuple[str, str]) -> None:
    blob = await registry.put(b"{}")
    files = [File(path=path, blob=blob.name, size_bytes=2) for path in paths]
    with pytest.raises(InvalidArgument):
        await create(registry, Version(files=files))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"files": []}, "version.files"),
        ({"tensors": [TensorDigest(name="a", digest="md5:0")]}, "version.tensors[0].digest"),
        ({"tensors": [TensorDigest(name="a", digest=DIGEST)] * 2}, "version.tensors[1].name"),
        ({"metrics": {"loss": math.nan}}, "version.metrics['loss']"),
        ({"metrics": {str(index): 0.0 for index in range(257)}}, "version.metrics"),
        ({"family": "GPT 2"}, "version.family"),
        ({"parameter_count": -1}, "version.parameter_count"),
        ({"labels": {str(index): "" for index in range(65)}}, "version.labels"),
        ({"description": "x" * 2001}, "version.description"),
        ({"lineage": Lineage(job="../j")}, "version.lineage.job"),
        ({"lineage": Lineage(parent_version="models/x")}, "version.lineage.parent_version"),
        ({"lineage": Lineage(specification_digest="x")}, "version.lineage.specification_digest"),
        ({"lineage": Lineage(datasets=[LineageDataset()])}, "version.lineage.datasets[0].dataset"),
    ],
)
async def test_what_cannot_be_is_refused_by_field(registry: Registry, fields: dict[str, object], field: str) -> None:
    blob = await registry.put(b"{}")
    version = Version(**({"files": [File(path="a", blob=blob.name, size_bytes=2)]} | fields))
    with pytest.raises(InvalidArgument) as refused:
        await create(registry, version)
    assert list(refused.value.violations) == [field]


async def test_the_manifest_digest_covers_files_and_tensors_in_any_order(registry: Registry) -> None:
    blobs = [await registry.put(content) for content in (b"1", b"2")]
    files = [
        File(path=path, blob=blob.name, size_bytes=blob.size_bytes) for path, blob in zip("ab", blobs, strict=True)
    ]
    tensors = [TensorDigest(name="x", digest=DIGEST), TensorDigest(name="y", digest=DIGEST)]
    first = await create(registry, Version(files=files, tensors=tensors))
    turned = await create(registry, Version(files=files[::-1], tensors=tensors[::-1], description="other"))
    swapped = [
        File(path=path, blob=blob.name, size_bytes=blob.size_bytes) for path, blob in zip("ba", blobs, strict=True)
    ]
    other = await create(registry, Version(files=swapped, tensors=tensors))
    assert first.manifest_digest == turned.manifest_digest != other.manifest_digest


async def test_numbers_are_given_once_however_many_ask(registry: Registry) -> None:
    versions = await asyncio.gather(*(registry.version() for _ in range(12)))
    assert {version.name for version in versions} == {f"models/poet/versions/{number}" for number in range(1, 13)}


async def test_the_number_of_a_deleted_version_is_not_given_again(registry: Registry) -> None:
    await registry.version()
    second = await registry.version()
    await registry.registry.DeleteVersion(DeleteVersionRequest(name=second.name))
    with pytest.raises(NotFound) as refused:
        await registry.registry.GetVersion(GetVersionRequest(name=second.name))
    assert refused.value.reason == errors_pb2.REASON_VERSION_NOT_FOUND
    assert "models/poet/versions/1" in refused.value.message
    assert (await registry.version()).name == "models/poet/versions/3"


async def test_a_version_with_an_alias_is_not_deleted(registry: Registry) -> None:
    version = await registry.version()
    await registry.registry.SetAlias(SetAliasRequest(name="models/poet/aliases/champion", version=version.name))
    with pytest.raises(FailedPrecondition) as refused:
        await registry.registry.DeleteVersion(DeleteVersionRequest(name=version.name))
    assert refused.value.reason == errors_pb2.REASON_VERSION_IN_USE
    assert "champion" in refused.value.message


async def test_a_reference_means_the_newest_an_alias_or_a_number(registry: Registry) -> None:
    first, second = await registry.version(), await registry.version()
    await registry.registry.SetAlias(SetAliasRequest(name="models/poet/aliases/champion", version=first.name))
    for reference, expected in (
        ("models/poet", second),
        ("models/poet@champion", first),
        ("models/poet/versions/2", second),
    ):
        found = await registry.registry.ResolveVersion(ResolveVersionRequest(reference=reference))
        assert found.name == expected.name
    assert found.manifest_digest == second.manifest_digest


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("models/nobody", errors_pb2.REASON_MODEL_NOT_FOUND),
        ("models/nobody@champion", errors_pb2.REASON_MODEL_NOT_FOUND),
        ("models/poet@nobody", errors_pb2.REASON_ALIAS_NOT_FOUND),
        ("models/poet/versions/99", errors_pb2.REASON_VERSION_NOT_FOUND),
        ("poet", errors_pb2.REASON_INVALID_NAME),
        ("models/poet/versions/0", errors_pb2.REASON_INVALID_NAME),
        ("models/poet/versions/1/x", errors_pb2.REASON_INVALID_NAME),
        ("", errors_pb2.REASON_MISSING_FIELD),
    ],
)
async def test_a_reference_to_nothing_says_what_is_missing(registry: Registry, reference: str, reason: int) -> None:
    await registry.version()
    with pytest.raises((NotFound, InvalidArgument)) as refused:
        await registry.registry.ResolveVersion(ResolveVersionRequest(reference=reference))
    assert refused.value.reason == reason
    assert list(refused.value.violations) == ["reference"]


async def test_only_what_describes_a_version_changes(registry: Registry) -> None:
    made = await registry.version()
    wanted = Version(name=made.name, description="new", metrics={"loss": 1.5}, labels={"a": "b"}, family="gpt2")
    after = await registry.registry.UpdateVersion(UpdateVersionRequest(version=wanted))
    assert (after.description, dict(after.metrics), dict(after.labels)) == ("new", {"loss": 1.5}, {"a": "b"})
    assert after.family == made.family
    assert after.files == made.files
    assert after.etag != made.etag
    with pytest.raises(InvalidArgument, match="files"):
        await registry.registry.UpdateVersion(
            UpdateVersionRequest(version=wanted, update_mask=FieldMask(paths=["files"]))
        )


async def test_lists_are_newest_first_without_tensors(registry: Registry) -> None:
    blob = await registry.put(b"{}")
    files = [File(path="a", blob=blob.name, size_bytes=2)]
    await create(registry, Version(files=files, tensors=[TensorDigest(name="w", digest=DIGEST)]))
    await registry.version("critic")
    await create(registry, Version(files=files, labels={"a": "b"}))
    everything = await registry.registry.ListVersions(ListVersionsRequest(parent="models/-"))
    names = [version.name for version in everything.versions]
    assert names == ["models/poet/versions/2", "models/critic/versions/1", "models/poet/versions/1"]
    assert not any(version.tensors for version in everything.versions)
    of_poet = await registry.registry.ListVersions(ListVersionsRequest(parent="models/poet", page_size=1))
    assert [version.name for version in of_poet.versions] == ["models/poet/versions/2"]
    rest = ListVersionsRequest(parent="models/poet", page_token=of_poet.next_page_token)
    assert [version.name for version in (await registry.registry.ListVersions(rest)).versions] == names[2:]
    labelled = ListVersionsRequest(parent="models/-", filter='labels.a="b"')
    assert (await registry.registry.ListVersions(labelled)).total_size == 1
    with pytest.raises(NotFound):
        await registry.registry.ListVersions(ListVersionsRequest(parent="models/nobody"))


async def test_versions_are_held_side_by_side(registry: Registry) -> None:
    one, two = await registry.put(b"1"), await registry.put(b"2")
    await create(
        registry,
        Version(
            files=[File(path="a", blob=one.name, size_bytes=1), File(path="old", blob=one.name, size_bytes=1)],
            tensors=[TensorDigest(name="same", digest=DIGEST), TensorDigest(name="x", digest=DIGEST)],
            metrics={"loss": 2.0, "only": 1.0},
        ),
    )
    await create(
        registry,
        Version(
            files=[File(path="a", blob=two.name, size_bytes=1), File(path="new", blob=one.name, size_bytes=1)],
            tensors=[TensorDigest(name="same", digest=DIGEST), TensorDigest(name="y", digest=DIGEST)],
            metrics={"loss": 1.5},
        ),
    )
    references = ["models/poet/versions/1", "models/poet"]
    compared = await registry.registry.CompareVersions(CompareVersionsRequest(references=references))
    assert not compared.differences[0].ListFields()
    difference = compared.differences[1]
    assert dict(difference.metrics) == {"loss": -0.5}
    assert list(difference.changed_files) == ["a", "new"]
    assert list(difference.missing_files) == ["old"]
    assert list(difference.changed_tensors) == ["x", "y"]
    assert difference.equal_tensor_count == 1
    for wrong in ([], ["models/poet"], ["models/poet"] * 9):
        with pytest.raises(InvalidArgument):
            await registry.registry.CompareVersions(CompareVersionsRequest(references=wrong))


async def test_a_request_sent_again_registers_one_version(registry: Registry, request_id: Callable[[], str]) -> None:
    blob = await registry.put(b"{}")
    version = Version(files=[File(path="a", blob=blob.name, size_bytes=2)])
    same = request_id()
    answers = await asyncio.gather(*(create(registry, version, request_id=same) for _ in range(5)))
    assert {answer.name for answer in answers} == {"models/poet/versions/1"}
    trial = await create(registry, version, validate_only=True)
    assert trial.name == "models/poet/versions/2"
    assert (await create(registry, version)).name == "models/poet/versions/2"
