"""A service is a value; a process is a list of services: how they start, tell their health, drain and stop."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from threading import Thread
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from octavo.serving.auth import Keyring
from octavo.serving.interceptor import CallInterceptor
from octavo.serving.settings import ProgramSettings, SettingsError
from octavo.serving.telemetry import ProcessMetrics, Telemetry

HEALTH_INTERVAL_S = 0.1
DEADLINE_S = 300.0
"""How long a unary call may take when its caller sets no deadline, in seconds."""


@dataclass(frozen=True)
class Service:
    """One program's servicers with what they need to live.

    `register` adds the servicers to a server; `lifespan` surrounds the time in which they may be called; `is_ready`
    answers readiness (liveness is the event loop's own answer).
    """

    name: str
    contracts: tuple[str, ...]
    settings: ProgramSettings
    telemetry: Telemetry
    register: Callable[[grpc.aio.Server], None]
    lifespan: Callable[[], AbstractAsyncContextManager[None]]
    is_ready: Callable[[], bool] = lambda: True


@asynccontextmanager
async def running(*services: Service) -> AsyncIterator[dict[str, str]]:
    """Runs services, each behind a server of its own; yields where each listens. On leaving, drains in reverse."""
    addresses: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        for service in services:
            addresses[service.name] = await stack.enter_async_context(_serving(service))
        yield addresses


async def serve(services: Sequence[Service], process: ProcessMetrics, metrics_port: int) -> None:
    """Runs services until SIGTERM or SIGINT, with the process's metrics at `/metrics`; 0 opens no such port."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        if metrics_port:
            server, thread = _metrics_server(services[0].settings.host, metrics_port, process)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        await stack.enter_async_context(running(*services))
        await stop.wait()


def _metrics_server(host: str, port: int, process: ProcessMetrics) -> tuple[WSGIServer, Thread]:
    try:
        return start_http_server(port, host, process.collector)
    except OSError as error:
        raise SettingsError(
            f"cannot serve metrics on {host}:{port}: {error.strerror}; OCTAVO_METRICS_PORT chooses another port, 0 none"
        ) from None


@asynccontextmanager
async def _serving(service: Service) -> AsyncIterator[str]:
    settings = service.settings
    keyring = Keyring.read(settings.api_keys) if settings.api_keys else None
    interceptor = CallInterceptor(service.telemetry, keyring, DEADLINE_S)
    server = grpc.aio.server(interceptors=[interceptor], options=_options(settings))
    service.register(server)
    healths = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    names = (*service.contracts, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    address = _bind(server, service)
    async with service.lifespan():
        await healths.set("liveness", health_pb2.HealthCheckResponse.SERVING)
        await _tell(healths, service, is_ready=service.is_ready())
        await server.start()
        service.telemetry.logger.info("listening", extra={"address": address})
        watcher = asyncio.create_task(_watch_readiness(healths, service), name=f"{service.name}-readiness")
        try:
            yield address
        finally:
            watcher.cancel()
            await healths.enter_graceful_shutdown()
            interceptor.drain()
            await server.stop(settings.drain_s)
            service.telemetry.close()


async def _watch_readiness(healths: health.aio.HealthServicer, service: Service) -> None:
    told = service.is_ready()
    while True:
        await asyncio.sleep(HEALTH_INTERVAL_S)
        if (is_ready := service.is_ready()) != told:
            await _tell(healths, service, is_ready=is_ready)
            told = is_ready


async def _tell(healths: health.aio.HealthServicer, service: Service, *, is_ready: bool) -> None:
    answers = health_pb2.HealthCheckResponse
    for name in ("", "readiness", *service.contracts):
        await healths.set(name, answers.SERVING if is_ready else answers.NOT_SERVING)


def _bind(server: grpc.aio.Server, service: Service) -> str:
    host, port = service.settings.host, service.settings.port
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError:
        raise SettingsError(
            f"{service.name} cannot listen on {host}:{port}: it is taken, or not an address of this machine; "
            f"OCTAVO_{service.name.upper()}_PORT chooses another"
        ) from None
    return f"{host}:{bound}"


def _options(settings: ProgramSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # two servers on one port are a mistake, not a load balancer
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", 4096),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),  # lets clients ping every 30 s
    ]
