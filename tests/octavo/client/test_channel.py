"""A channel retries reads, never writes, and translates what goes wrong: over real sockets."""

import asyncio

import grpc
import pytest

from octavo.addresses import Addresses
from octavo.client import AsyncClient, Client
from octavo.client.channel import translated
from octavo.errors import NotFound, Unavailable
from octavo.v1 import errors_pb2, registry_pb2, registry_pb2_grpc


class FlakyRegistry(registry_pb2_grpc.RegistryServicer):
    """Is away for the first calls of each kind, then answers; counts what reaches it."""

    def __init__(self, failures):
        self.failures = failures
        self.calls = 0
        self.metadata = {}

    async def _answer(self, context):
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        if self.calls <= self.failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        return registry_pb2.Model(name="models/poet")

    async def GetModel(self, request, context):
        return await self._answer(context)

    async def CreateModel(self, request, context):
        return await self._answer(context)

    async def ListModels(self, request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "a plain status, without details")


@pytest.fixture
async def flaky():
    server = grpc.aio.server()
    servicer = FlakyRegistry(failures=2)
    registry_pb2_grpc.add_RegistryServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield servicer
    await server.stop(0)


async def test_a_read_is_retried_until_the_server_is_back(flaky):
    async with AsyncClient(Addresses(registry=flaky.address)) as client:
        assert (await client.registry.GetModel(registry_pb2.GetModelRequest())).name == "models/poet"
    assert flaky.calls == 3


async def test_a_write_is_never_repeated_behind_the_caller_s_back(flaky):
    async with AsyncClient(Addresses(registry=flaky.address)) as client:
        with pytest.raises(Unavailable):
            await client.registry.CreateModel(registry_pb2.CreateModelRequest())
    assert flaky.calls == 1


async def test_the_client_for_threads_behaves_like_the_one_for_loops(flaky):
    def read():
        with Client(Addresses(registry=flaky.address), api_key="letmein") as client:
            return client.registry.GetModel(registry_pb2.GetModelRequest()).name

    assert await asyncio.to_thread(read) == "models/poet"
    assert flaky.metadata["authorization"] == "Bearer letmein"


async def test_a_plain_status_becomes_the_error_its_code_names(flaky):
    async with AsyncClient(Addresses(registry=flaky.address)) as client:
        with pytest.raises(NotFound, match="a plain status"):
            await client.registry.ListModels(registry_pb2.ListModelsRequest())


async def test_a_server_that_is_not_there_is_unavailable():
    async with AsyncClient(Addresses(registry="127.0.0.1:1")) as client:
        with pytest.raises(Unavailable) as caught:
            await client.registry.CreateModel(registry_pb2.CreateModelRequest())
    assert caught.value.reason == errors_pb2.REASON_UPSTREAM_UNAVAILABLE


def test_details_that_do_not_fit_the_status_do_not_hide_the_error():
    class Odd(grpc.RpcError):
        def code(self):
            return grpc.StatusCode.NOT_FOUND

        def details(self):
            return "changed by a proxy"

        def trailing_metadata(self):
            status = NotFound(errors_pb2.REASON_MODEL_NOT_FOUND, "as it was").to_status()
            return (("grpc-status-details-bin", status.SerializeToString()),)

    assert str(translated(Odd())) == "changed by a proxy"
