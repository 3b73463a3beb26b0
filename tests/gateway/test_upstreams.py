"""The programs behind the gateway."""

import asyncio

import grpc
import pytest

from gateway.contract import Contract
from gateway.settings import GatewaySettings
from gateway.upstreams import Upstream, Upstreams
from octavo.addresses import CONTRACTS, Addresses
from tests.gateway.conftest import SERVICE, handlers


async def test_a_program_that_comes_back_on_its_address_is_found_again(start, shop, contract) -> None:
    async with start() as gateway:
        assert (await gateway.http.get("/v1/books/a")).status_code == 200
        await shop.stop()
        assert (await gateway.http.get("/v1/books/a")).status_code == 503
        again = grpc.aio.server()
        again.add_generic_rpc_handlers((handlers(shop, contract),))
        again.add_insecure_port(shop.address)
        await again.start()
        async with asyncio.timeout(10):
            while (await gateway.http.get("/v1/books/a")).status_code != 200:
                await asyncio.sleep(0.05)
        await again.stop(None)


def test_the_suites_programs_are_where_the_addresses_say() -> None:
    contract = Contract.load(GatewaySettings().contract)
    upstreams = Upstreams.at(Addresses(trainer="trainer:1"), contract)
    assert upstreams.services == {name for names in CONTRACTS.values() for name in names}
    method = next(method for method in contract.methods() if method.full_name == "octavo.v1.Trainer.GetJob")
    assert upstreams.of(method) == Upstream("trainer", "trainer:1", CONTRACTS["trainer"])


async def test_closing_ends_the_calls_under_way(contract, shop, message) -> None:
    upstreams = Upstreams([Upstream("shop", shop.address, (SERVICE,))], contract)
    method = next(method for method in contract.methods() if method.name == "WatchTicks")
    call = upstreams.callable(method)(message("WatchTicksRequest", pause_s=0.01))
    await call.read()
    await upstreams.close()
    with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
        while True:
            await call.read()
