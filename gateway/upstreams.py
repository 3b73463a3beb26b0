"""The programs behind the gateway: one channel each, callables by RPC, health. Knows nothing of HTTP."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.contract import Contract, grpc_path, service_name
from octavo.addresses import CONTRACTS, Addresses
from octavo.client.channel import open_async

_HEALTH_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """One program: its name, where it is and the full names of the gRPC services it hosts."""

    program: str
    address: str
    services: tuple[str, ...]


class Upstreams:
    """Channels to all programs. They connect when first used, and again whenever they have to."""

    def __init__(self, upstreams: Sequence[Upstream], contract: Contract) -> None:
        """Opens nothing yet: channels belong to the event loop that first uses them."""
        self._upstreams = tuple(upstreams)
        self._contract = contract
        self._by_service = {service: upstream for upstream in upstreams for service in upstream.services}
        self._channels: dict[str, grpc.aio.Channel] = {}

    @classmethod
    def at(cls, addresses: Addresses, contract: Contract) -> Self:
        """The suite's own programs."""
        programs = tuple(
            Upstream(program, getattr(addresses, program), services) for program, services in CONTRACTS.items()
        )
        return cls(programs, contract)

    @property
    def services(self) -> frozenset[str]:
        """The full names of all services behind the gateway."""
        return frozenset(self._by_service)

    def of(self, method: MethodDescriptor) -> Upstream:
        """The program that hosts an RPC."""
        return self._by_service[service_name(method)]

    def callable(self, method: MethodDescriptor) -> Any:
        """The multi-callable of an RPC: unary-unary, or unary-stream where the server streams."""
        channel = self._channel(self.of(method))
        open_callable = channel.unary_stream if method.server_streaming else channel.unary_unary
        return open_callable(
            grpc_path(method),
            request_serializer=self._contract.message_class(method.input_type).SerializeToString,
            response_deserializer=self._contract.message_class(method.output_type).FromString,
        )

    async def health(self) -> Mapping[str, str]:
        """Each program's own answer about its readiness, `UNREACHABLE` where there is none within a second."""
        answers = await asyncio.gather(*map(self._health, self._upstreams))
        return {upstream.program: answer for upstream, answer in zip(self._upstreams, answers, strict=True)}

    async def _health(self, upstream: Upstream) -> str:
        stub: Any = health_pb2_grpc.HealthStub(self._channel(upstream))
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return "UNREACHABLE" if error.code() in _SILENT else error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def _channel(self, upstream: Upstream) -> grpc.aio.Channel:
        if upstream.program not in self._channels:
            services = [service for service in self._contract.services if service.full_name in upstream.services]
            self._channels[upstream.program] = open_async(upstream.address, services)
        return self._channels[upstream.program]

    async def close(self) -> None:
        """Ends all channels, and with them the calls under way."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()


_SILENT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
