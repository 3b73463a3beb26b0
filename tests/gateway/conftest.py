"""A contract of our own, its server, and a gateway in front of it: all real, all on free ports."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.api import annotations_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_tools import protoc
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway import app
from gateway.contract import Contract
from gateway.settings import GatewaySettings
from gateway.upstreams import Upstream
from octavo.serving import ProcessMetrics, Telemetry
from tests.gateway.live import serving

SERVICE = "shop.v1.Shop"


@pytest.fixture(scope="session")
def contract_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("contract") / "shop.binpb"
    code = protoc.main(
        [
            "protoc",
            f"-I{Path(__file__).parent}",
            f"-I{resources.files('grpc_tools') / '_proto'}",
            f"-I{Path(annotations_pb2.__file__).parents[2]}",
            f"--descriptor_set_out={target}",
            "--include_imports",
            "--include_source_info",
            "shop.proto",
        ]
    )
    assert code == 0
    return target


@pytest.fixture(scope="session")
def contract(contract_path: Path) -> Contract:
    return Contract.load(contract_path)


@pytest.fixture(scope="session")
def message(contract: Contract) -> Callable[..., Any]:
    """Makes a message of the test contract: `message("Book", name="shelves/1/books/2")`."""

    def make(kind: str, /, **fields: Any) -> Any:
        return contract.message_class(contract.pool.FindMessageTypeByName(f"shop.v1.{kind}"))(**fields)

    return make


@dataclass
class Shop:
    """The servicer: remembers what it was asked, and how calls ended."""

    message: Callable[..., Any]
    requests: list[Any] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    time_left_s: float | None = None
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    ticks: int = 0
    health: Any = None
    address: str = ""
    stop: Callable[[], Awaitable[None]] | None = None

    def note(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        self.time_left_s = context.time_remaining()

    async def get_book(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        return self.message("Book", name=request.name, display_name="Poems")

    async def list_books(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        return self.message("ListBooksResponse", books=[self.message("Book", name="a")], next_page_token="b")

    async def create_book(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        await context.send_initial_metadata((("x-http-code", "201"), ("shelf", "3")))
        return request.book

    async def update_book(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        return request.book

    async def delete_book(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        from google.protobuf import empty_pb2

        return empty_pb2.Empty()

    async def echo(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        return request

    async def fail(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        try:
            await asyncio.sleep(request.after_s)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        status = status_pb2.Status(code=request.code, message=f"failed with {request.reason}")
        if request.reason != "bare":
            status.details.add().Pack(error_details_pb2.ErrorInfo(reason=request.reason, domain="shop"))
        if request.retry_after_s:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(request.retry_after_s * 1e9))
            status.details.add().Pack(retry)
        if request.reason == "STRANGE":
            status.details.add(type_url="type.googleapis.com/who.Knows", value=b"\x01\x02")
        code = next(code for code in grpc.StatusCode if code.value[0] == request.code)
        trailers = (("grpc-status-details-bin", status.SerializeToString()),) if status.details else ()
        await context.abort(code, status.message, trailers)

    async def watch_ticks(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.note(request, context)
        try:
            number = request.after_sequence
            while request.count == 0 or number < request.after_sequence + request.count:
                if request.HasField("fail_after") and number >= request.fail_after:
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more ticks")
                await asyncio.sleep(request.pause_s)
                number += 1
                self.ticks += 1
                yield self.message("Tick", sequence=number, text=f"tick {number}\n" + "x" * request.padding_bytes)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def download(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        return self.http_body("text/plain", b"all of it")

    async def stream_download(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.note(request, context)
        yield self.http_body("application/epub+zip", b"one")
        if request.name == "broken":
            await context.abort(grpc.StatusCode.DATA_LOSS, "the disk is gone")
        yield self.http_body("ignored/later", b"two")

    async def read_book(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.note(request, context)
        yield self.message("ReadBookResponse", chunk=b"\x00one", offset=0)
        if request.name == "broken":
            await context.abort(grpc.StatusCode.DATA_LOSS, "the disk is gone")
        yield self.message("ReadBookResponse", chunk=b"two\xff", offset=4)

    async def recite(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.note(request, context)
        for number in range(3):
            yield self.message("Tick", text=f"line {number}")
            await asyncio.sleep(0.1)

    async def upload(self, request: Any, context: Any) -> Any:
        self.note(request, context)
        return self.message("Book", name=request.name)

    def http_body(self, content_type: str, data: bytes) -> Any:
        from google.api import httpbody_pb2

        return httpbody_pb2.HttpBody(content_type=content_type, data=data)


def handlers(shop: Shop, contract: Contract) -> grpc.GenericRpcHandler:
    behaviours: dict[str, Any] = {}
    for method in contract.pool.FindServiceByName(SERVICE).methods:
        snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in method.name).removeprefix("_")
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        if not method.client_streaming:
            behaviours[method.name] = make(
                getattr(shop, snake),
                request_deserializer=contract.message_class(method.input_type).FromString,
                response_serializer=lambda answer: answer.SerializeToString(),
            )
    return grpc.method_handlers_generic_handler(SERVICE, behaviours)


@pytest.fixture
async def shop(contract: Contract, message: Callable[..., Any]) -> AsyncIterator[Shop]:
    servicer = Shop(message)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers(servicer, contract),))
    servicer.health = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer.health, server)
    await servicer.health.set("", health_pb2.HealthCheckResponse.SERVING)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    servicer.stop = lambda: server.stop(None)
    await server.start()
    yield servicer
    await server.stop(None)


@dataclass
class Gateway:
    """A running gateway: its URL, a client, its spans."""

    url: str
    http: httpx.AsyncClient
    spans: InMemorySpanExporter
    drain: Callable[[], None]


Start = Callable[..., Any]


@pytest.fixture
def start(contract_path: Path, shop: Shop) -> Start:
    """Starts a gateway in front of the shop, with settings of the test's own."""

    @contextlib.asynccontextmanager
    async def run(*, address: str = "", **overrides: Any) -> AsyncIterator[Gateway]:
        settings = GatewaySettings(port=0, contract=contract_path, **overrides)
        spans = InMemorySpanExporter()
        telemetry = Telemetry.create("gateway", ProcessMetrics(), [SimpleSpanProcessor(spans)])
        upstream = Upstream("shop", address or shop.address, (SERVICE,))
        application = app.create(settings, telemetry, [upstream])
        async with serving(application) as url, httpx.AsyncClient(base_url=url, timeout=10) as http:
            yield Gateway(url, http, spans, application.state.drain)

    return run


@pytest.fixture
async def gateway(start: Start) -> AsyncIterator[Gateway]:
    async with start() as running:
        yield running
