"""The inspector answers over gRPC about what a real registry holds, without fetching the weights."""

import hashlib
import json
import uuid
from contextlib import asynccontextmanager

import numpy as np
import pytest
import pytest_asyncio

import services.inspector as inspector
import services.registry as registry
from octavo.addresses import Addresses
from octavo.client import AsyncClient
from octavo.errors import InvalidArgument, NotFound, Unimplemented
from octavo.formats.tensor_file import read_header
from octavo.serving import ProcessMetrics, Telemetry, running
from octavo.v1 import blobs_pb2, errors_pb2, registry_pb2
from octavo.v1 import inspector_pb2 as pb

# One suite serves every test of this file; none changes what it holds.
pytestmark = pytest.mark.asyncio(loop_scope="module")


def telemetry(name):
    return Telemetry.create(name, ProcessMetrics())


@asynccontextmanager
async def suite(data_dir):
    """A client of a registry and an inspector that asks it."""
    registry_settings = registry.Settings(port=0, data_dir=data_dir)
    async with running(registry.assemble(registry_settings, telemetry("registry"))) as first:
        settings = inspector.Settings(port=0, data_dir=data_dir, registry=first["registry"])
        async with (
            running(inspector.assemble(settings, telemetry("inspector"))) as second,
            AsyncClient(Addresses(**first, **second)) as client,
        ):
            yield client


async def upload(client, data):
    name = f"blobs/sha256:{hashlib.sha256(data).hexdigest()}"

    async def messages():
        header = blobs_pb2.WriteBlobRequest.Header(upload=f"uploads/{uuid.uuid4()}", blob=name, size_bytes=len(data))
        yield blobs_pb2.WriteBlobRequest(header=header)
        for start in range(0, len(data), 1 << 18):
            yield blobs_pb2.WriteBlobRequest(chunk=data[start : start + (1 << 18)])

    return await client.blobs.WriteBlob(messages())


async def publish(client, files, digests):
    await client.registry.CreateModel(registry_pb2.CreateModelRequest(model_id="poet", model=registry_pb2.Model()))
    listed = []
    for path, data in files.items():
        blob = await upload(client, data)
        listed.append(registry_pb2.File(path=path, blob=blob.name, size_bytes=blob.size_bytes))
    tensors = [registry_pb2.TensorDigest(name=name, digest=digest) for name, digest in digests.items()]
    version = registry_pb2.Version(files=listed, tensors=tensors)
    request = registry_pb2.CreateVersionRequest(parent="models/poet", version=version)
    return await client.registry.CreateVersion(request)


@pytest.fixture(scope="session")
def digests(bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("digests") / "model.safetensors"
    path.write_bytes(bundle["model.safetensors"])
    return {
        name: f"sha256:{hashlib.sha256(bundle['model.safetensors'][entry.offset :][: entry.size_bytes]).hexdigest()}"
        for name, entry in read_header(path).tensors.items()
    }


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("octavo")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(data_dir, bundle, digests):
    async with suite(data_dir) as client:
        await publish(client, bundle, digests)
        yield client


async def test_a_version_is_inspected_by_every_name_it_has(client, architecture):
    for name in ("models/poet/versions/1", "models/poet"):
        inspection = await client.inspector.InspectArtifact(pb.InspectArtifactRequest(artifact=name))
        assert inspection.artifact == "models/poet/versions/1"
        assert inspection.parameter_count == architecture.parameters
        assert inspection.anatomy.layer_count == 2
        assert inspection.files[2].graph.is_backed_by_safetensors
        assert not [finding for finding in inspection.findings if finding.severity > pb.FINDING_SEVERITY_INFO]
        assert 0 < inspection.read_bytes < inspection.size_bytes / 3
        assert inspection.elapsed.ToMilliseconds() < 5_000


async def test_a_blob_is_inspected_by_its_digest(client, bundle):
    name = f"blobs/sha256:{hashlib.sha256(bundle['model.onnx']).hexdigest()}"
    inspection = await client.inspector.InspectArtifact(pb.InspectArtifactRequest(artifact=name))
    assert inspection.files[0].format == pb.FILE_FORMAT_ONNX


async def test_tensors_carry_the_digests_of_the_manifest_and_their_bytes_have_them(client, digests):
    listed = await client.inspector.ListTensors(
        pb.ListTensorsRequest(artifact="models/poet", path="model.safetensors", page_size=1000)
    )
    assert {tensor.name: tensor.digest for tensor in listed.tensors} == digests
    measured = await client.inspector.GetTensorStatistics(pb.GetTensorStatisticsRequest(artifact="models/poet"))
    assert {statistics.tensor.name: statistics.digest for statistics in measured.statistics} == digests
    assert "digest-mismatch" not in [finding.code for finding in measured.findings]


async def test_values_arrive_as_they_were_written(client, bundle, architecture):
    request = pb.ReadTensorRequest(
        artifact="models/poet", tensor="transformer.wte.weight", lengths=[3, 64], encoding=pb.TENSOR_ENCODING_RAW
    )
    reply = await client.inspector.ReadTensor(request)
    offset = reply.tensor.offset_bytes
    assert reply.raw == bundle["model.safetensors"][offset : offset + 3 * 64 * 4]
    assert np.isfinite(np.frombuffer(reply.raw, np.float32)).all()


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("", InvalidArgument, errors_pb2.REASON_MISSING_FIELD),
        ("poet", InvalidArgument, errors_pb2.REASON_INVALID_NAME),
        ("blobs/sha256:12", InvalidArgument, errors_pb2.REASON_INVALID_NAME),
        ("models/../versions/1", NotFound, None),
        ("models/poet/versions/9", NotFound, errors_pb2.REASON_VERSION_NOT_FOUND),
        ("models/poet@gone", NotFound, errors_pb2.REASON_ALIAS_NOT_FOUND),
        ("models/prose", NotFound, errors_pb2.REASON_MODEL_NOT_FOUND),
        ("blobs/sha256:" + "0" * 64, NotFound, errors_pb2.REASON_BLOB_NOT_FOUND),
    ],
)
async def test_what_is_not_there_is_said_as_the_registry_says_it(client, name, error, reason):
    with pytest.raises((error, InvalidArgument)) as caught:
        await client.inspector.InspectArtifact(pb.InspectArtifactRequest(artifact=name))
    assert reason is None or caught.value.reason == reason
    assert set(caught.value.violations) <= {"artifact"}


async def test_the_machine_is_diagnosed_over_the_wire(client, data_dir):
    diagnosis = await client.inspector.DiagnoseSystem(pb.DiagnoseSystemRequest())
    assert diagnosis.storage[0].path == str(data_dir)
    assert "CPUExecutionProvider" in diagnosis.execution_providers


async def test_a_configuration_in_the_registry_gives_the_anatomy(client, bundle):
    inspection = await client.inspector.InspectArtifact(pb.InspectArtifactRequest(artifact="models/poet/versions/1"))
    assert inspection.anatomy.vocabulary_size == json.loads(bundle["config.json"])["vocab_size"]


async def test_a_version_compared_with_its_own_weights_as_a_blob_is_identical(client, bundle):
    blob = f"blobs/sha256:{hashlib.sha256(bundle['model.safetensors']).hexdigest()}"
    comparison = await client.inspector.CompareArtifacts(
        pb.CompareArtifactsRequest(artifact="models/poet", baseline=blob)
    )
    assert comparison.is_identical
    assert comparison.baseline == blob
    with pytest.raises(InvalidArgument) as caught:
        await client.inspector.CompareArtifacts(pb.CompareArtifactsRequest(artifact="models/poet"))
    assert list(caught.value.violations) == ["baseline"]


async def test_a_graph_is_listed_node_by_node(client):
    graph = await client.inspector.InspectGraph(pb.InspectGraphRequest(artifact="models/poet"))
    assert [node.operator for node in graph.nodes] == ["Gather", "Gelu", "MatMulNBits"]


async def test_the_cost_of_fewer_bits_is_measured(client):
    request = pb.AnalyzeQuantizationRequest(artifact="models/poet")
    analysis = await client.inspector.AnalyzeQuantization(request)
    assert analysis.total_size == 2 + 2 * 4
    assert 0.001 < analysis.totals[0].relative_error < 0.01


async def test_memory_is_estimated_for_a_version_and_for_a_configuration_alike(client, bundle):
    request = pb.EstimateMemoryRequest(artifact="models/poet", batch_size=4)
    stored = await client.inspector.EstimateMemory(request)
    assert stored.artifact == "models/poet/versions/1"
    text = pb.EstimateMemoryRequest(config_json=bundle["config.json"].decode(), batch_size=4)
    given = await client.inspector.EstimateMemory(text)
    assert given.serving_bytes == stored.serving_bytes
    for broken in (pb.EstimateMemoryRequest(), pb.EstimateMemoryRequest(config_json="{}")):
        with pytest.raises(InvalidArgument):
            await client.inspector.EstimateMemory(broken)


async def test_the_environment_is_validated_with_the_registry_in_it(client):
    validation = await client.inspector.ValidateEnvironment(pb.ValidateEnvironmentRequest(artifact="models/poet"))
    outcomes = {check.code: check.outcome for check in validation.checks}
    assert outcomes["registry"] == pb.CHECK_OUTCOME_PASSED
    assert outcomes["artifact"] == pb.CHECK_OUTCOME_PASSED
    assert outcomes["artifact-memory"] == pb.CHECK_OUTCOME_PASSED


async def test_without_a_registry_the_machine_is_still_diagnosed_and_the_gap_named(tmp_path):
    settings = inspector.Settings(port=0, data_dir=tmp_path, registry="127.0.0.1:1")
    async with (
        running(inspector.assemble(settings, telemetry("inspector"))) as addresses,
        AsyncClient(Addresses(**addresses)) as client,
    ):
        assert (await client.inspector.DiagnoseSystem(pb.DiagnoseSystemRequest())).HasField("processor")
        validation = await client.inspector.ValidateEnvironment(pb.ValidateEnvironmentRequest())
        assert not validation.is_valid
        assert validation.checks[0].code == "registry"


async def test_a_bundle_is_safe_to_load_and_a_pickle_of_a_call_is_not(client):
    verdict = await client.inspector.AuditArtifact(pb.AuditArtifactRequest(artifact="models/poet"))
    assert (verdict.status, verdict.verdict) == (pb.AUDIT_STATUS_COMPLETE, pb.AUDIT_VERDICT_CLEAN)
    blob = await upload(client, b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.")
    verdict = await client.inspector.AuditArtifact(pb.AuditArtifactRequest(artifact=blob.name))
    assert verdict.verdict == pb.AUDIT_VERDICT_MALICIOUS
    assert (verdict.files[0].imports[0].module, verdict.files[0].imports[0].symbol) == ("os", "system")


async def test_what_is_not_built_yet_says_so(client):
    with pytest.raises(Unimplemented):
        await client.inspector.ListReports(pb.ListReportsRequest())
