"""A service starts, answers, fails in the agreed way, tells its health, drains and stops: over real sockets."""

import asyncio
import logging
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from octavo.addresses import Addresses
from octavo.client import AsyncClient
from octavo.errors import Internal, NotFound, ResourceExhausted, Unauthenticated, Unavailable, Unimplemented
from octavo.serving import ProcessMetrics, ProgramSettings, Service, SettingsError, Telemetry, running, serve
from octavo.serving.auth import key_digest
from octavo.serving.interceptor import REFUSAL_INTERVAL_S, Refusals
from octavo.v1 import blobs_pb2, blobs_pb2_grpc, errors_pb2, registry_pb2, registry_pb2_grpc

CONTRACTS = ("octavo.v1.Registry", "octavo.v1.Blobs")


class RegistryServicer(registry_pb2_grpc.RegistryServicer):
    """Answers some calls, each in another way; leaves the rest to the contract's default."""

    async def GetModel(self, request, context):
        if request.name == "models/broken":
            raise ZeroDivisionError("a secret of the implementation")
        if request.name == "models/popular":
            raise ResourceExhausted(errors_pb2.REASON_QUEUE_FULL, "as many as may", retry_after_s=1)
        if request.name != "models/poet":
            raise NotFound(errors_pb2.REASON_MODEL_NOT_FOUND, f"there is no {request.name}", model=request.name)
        return registry_pb2.Model(name=request.name)

    async def WatchEvents(self, request, context):
        yield registry_pb2.AuditEvent(sequence=request.after_sequence + 1)
        await asyncio.Event().wait()


class BlobsServicer(blobs_pb2_grpc.BlobsServicer):
    """Streams two chunks, then fails."""

    async def ReadBlob(self, request, context):
        yield blobs_pb2.ReadBlobResponse(chunk=b"ab")
        yield blobs_pb2.ReadBlobResponse(chunk=b"cd", offset=2)
        raise NotFound(errors_pb2.REASON_BLOB_NOT_FOUND, "gone meanwhile")


@dataclass
class Program:
    """A service under test with the switches a test needs."""

    settings: ProgramSettings
    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    process: ProcessMetrics = field(default_factory=ProcessMetrics)
    is_ready: bool = True
    life: list[str] = field(default_factory=list)

    def service(self):
        telemetry = Telemetry.create("registry", self.process, [SimpleSpanProcessor(self.spans)])

        def register(server):
            registry_pb2_grpc.add_RegistryServicer_to_server(RegistryServicer(), server)
            blobs_pb2_grpc.add_BlobsServicer_to_server(BlobsServicer(), server)

        @asynccontextmanager
        async def lifespan():
            self.life.append("begun")
            yield
            self.life.append("ended")

        return Service("registry", CONTRACTS, self.settings, telemetry, register, lifespan, lambda: self.is_ready)


@pytest.fixture
def program(tmp_path):
    return Program(ProgramSettings(port=0, data_dir=tmp_path, drain_s=20))


@asynccontextmanager
async def client_of(program, **options):
    async with running(program.service()) as addresses, AsyncClient(Addresses(**addresses), **options) as client:
        yield client


async def test_a_reply_arrives_and_the_lifespan_surrounds_it(program):
    async with client_of(program) as client:
        assert program.life == ["begun"]
        assert (await client.registry.GetModel(registry_pb2.GetModelRequest(name="models/poet"))).name == "models/poet"
    assert program.life == ["begun", "ended"]


async def test_an_error_of_the_domain_reaches_the_caller_as_it_was_raised(program):
    async with client_of(program) as client:
        with pytest.raises(NotFound) as caught:
            await client.registry.GetModel(registry_pb2.GetModelRequest(name="models/nobody"))
    assert caught.value.reason == errors_pb2.REASON_MODEL_NOT_FOUND
    assert caught.value.metadata == {"model": "models/nobody"}


async def test_a_defect_is_logged_in_full_and_told_in_one_sentence(program, caplog):
    logging.getLogger("octavo").propagate = True
    async with client_of(program) as client:
        with pytest.raises(Internal) as caught:
            await client.registry.GetModel(
                registry_pb2.GetModelRequest(name="models/broken"), metadata=(("x-request-id", "r-17"),)
            )
    assert "secret" not in str(caught.value)
    assert caught.value.metadata == {"request_id": "r-17"}
    assert "a secret of the implementation" in caplog.text


async def test_refusals_for_want_of_room_are_answered_each_and_logged_together(program, caplog):
    logging.getLogger("octavo").propagate = True
    caplog.set_level(logging.INFO, "octavo.registry")
    async with client_of(program) as client:
        for _ in range(20):
            with pytest.raises(ResourceExhausted):
                await client.registry.GetModel(registry_pb2.GetModelRequest(name="models/popular"))
    lines = [record for record in caplog.records if getattr(record, "code", "") == "RESOURCE_EXHAUSTED"]
    assert 1 <= len(lines) < 20


def test_the_log_tells_of_refusals_once_an_interval_and_how_many():
    refusals = Refusals()
    times_s = (0, 0.1, 0.9 * REFUSAL_INTERVAL_S, REFUSAL_INTERVAL_S, 5 * REFUSAL_INTERVAL_S)
    assert [refusals.told(now_s) for now_s in times_s] == [1, 0, 0, 3, 1]


async def test_a_call_that_is_not_built_yet_says_so(program):
    async with client_of(program) as client:
        with pytest.raises(Unimplemented, match="cannot CreateModel yet") as caught:
            await client.registry.CreateModel(registry_pb2.CreateModelRequest())
    assert caught.value.reason == errors_pb2.REASON_NOT_IMPLEMENTED


async def test_a_stream_that_fails_keeps_what_came_before(program):
    chunks = []
    async with client_of(program) as client:
        with pytest.raises(NotFound):
            async for message in client.blobs.ReadBlob(blobs_pb2.ReadBlobRequest(name="blobs/x")):
                chunks.append(message.chunk)
    assert chunks == [b"ab", b"cd"]


async def test_a_watch_ends_at_once_when_the_server_drains(program):
    async with running(program.service()) as addresses:
        client = AsyncClient(Addresses(**addresses))
        stream = client.registry.WatchEvents(registry_pb2.WatchEventsRequest(after_sequence=6))
        assert (await anext(stream)).sequence == 7
        rest = asyncio.create_task(anext(stream))
    with pytest.raises(Unavailable) as caught:
        await rest
    assert caught.value.reason == errors_pb2.REASON_SHUTTING_DOWN
    await client.close()


async def test_health_tells_liveness_from_readiness(program):
    async with running(program.service()) as addresses, grpc.aio.insecure_channel(addresses["registry"]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(name):
            return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status

        assert await status("readiness") == await status("octavo.v1.Registry") == 1
        program.is_ready = False
        async with asyncio.timeout(5):
            while await status("readiness") == 1:
                await asyncio.sleep(0.02)
        assert await status("liveness") == 1


async def test_a_call_leaves_a_span_with_its_parent_and_a_duration(program):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with client_of(program) as client:
        with pytest.raises(NotFound):
            await client.registry.GetModel(
                registry_pb2.GetModelRequest(name="models/nobody"), metadata=(("traceparent", parent),)
            )
    (span,) = program.spans.get_finished_spans()
    assert span.name == "octavo.v1.Registry/GetModel"
    assert span.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert span.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert span.status.is_ok or span.status.is_unset
    labels = {"rpc_method": "octavo.v1.Registry/GetModel", "rpc_status_code": "NOT_FOUND"}
    counted = program.process.collector.get_sample_value("octavo_rpc_server_call_duration_seconds_count", labels)
    assert counted == 1


async def test_with_keys_only_a_known_key_may_call_but_probes_may(program, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"# the press\n{key_digest('letmein')}\n")
    program.settings = ProgramSettings(port=0, data_dir=tmp_path, drain_s=2, api_keys=keys)
    request = registry_pb2.GetModelRequest(name="models/poet")
    async with running(program.service()) as addresses:
        async with AsyncClient(Addresses(**addresses), api_key="letmein") as known:
            assert (await known.registry.GetModel(request)).name == "models/poet"
        async with AsyncClient(Addresses(**addresses), api_key="guess") as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.registry.GetModel(request)
        async with grpc.aio.insecure_channel(addresses["registry"]) as channel:
            check = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert check.status == 1


async def test_two_servers_on_one_port_are_a_mistake_that_is_told(program):
    async with running(program.service()) as addresses:
        port = int(addresses["registry"].rpartition(":")[2])
        second = Program(ProgramSettings(port=port, data_dir=program.settings.data_dir))
        with pytest.raises(SettingsError, match="OCTAVO_REGISTRY_PORT"):
            async with running(second.service()):
                pass


async def test_a_metrics_port_that_is_taken_is_told_with_the_way_out(program):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}.*OCTAVO_METRICS_PORT"):
            await serve([program.service()], program.process, port)
