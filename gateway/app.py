"""The gateway put together: contract, upstreams, routes, pages, probes, middleware. The one place that wires."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from gateway.calls import Transcoder
from gateway.contract import Contract
from gateway.middleware import Guarded, HttpMetrics, Observed
from gateway.origins import OwnPages, listed
from gateway.pages import Pages
from gateway.probes import Probes
from gateway.problems import Problem, refusal
from gateway.settings import GatewaySettings
from gateway.upstreams import Upstream, Upstreams
from octavo.errors import InvalidArgument, NotFound, Unimplemented
from octavo.serving import Telemetry
from octavo.v1.errors_pb2 import Reason


def create(settings: GatewaySettings, telemetry: Telemetry, upstreams: Sequence[Upstream] | None = None) -> Starlette:
    """The ASGI application; `upstreams` are the suite's own programs unless told otherwise.

    Raises TemplateError when the contract's bindings contradict one another.
    """
    contract = Contract.load(settings.contract)
    programs = Upstreams.at(settings.addresses, contract) if upstreams is None else Upstreams(upstreams, contract)
    transcoder = Transcoder(contract, programs, settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        telemetry.logger.info("routes ready", extra={"routes": len(transcoder.table.routes)})
        yield
        await programs.close()
        telemetry.close()

    application = Starlette(
        routes=[
            *Probes(programs, telemetry.collector).routes(),
            *Pages(contract, transcoder.table).routes(),
        ],
        middleware=_middleware(settings, telemetry, contract),
        exception_handlers={HTTPException: _refused},
        lifespan=lifespan,
    )
    application.router.redirect_slashes = False
    application.router.default = transcoder
    application.state.drain = transcoder.drain
    return application


def _middleware(settings: GatewaySettings, telemetry: Telemetry, contract: Contract) -> list[Middleware]:
    layers = [
        Middleware(Observed, telemetry, HttpMetrics(telemetry.collector)),
        Middleware(Guarded, telemetry, contract.pool, settings.max_body_bytes, settings.body_timeout_s),
    ]
    origins = listed(settings.allow_origins)
    if settings.is_open_to_pages:
        layers.append(Middleware(OwnPages, listed(settings.allow_hosts), origins))
    if origins:
        layers.insert(
            1,
            Middleware(
                CORSMiddleware,
                allow_origins=sorted(origins),
                allow_methods=["GET", "POST", "PATCH", "PUT", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            ),
        )
    return layers


async def _refused(request: Request, error: Exception) -> Response:
    """What Starlette's own routes refuse, in the one shape that all errors have."""
    if not isinstance(error, HTTPException):
        raise error
    raise _problem(error, request)


def _problem(error: HTTPException, request: Request) -> Problem:
    where = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        return refusal(NotFound(Reason.REASON_ROUTE_NOT_FOUND, f"nothing is at {where}; /docs lists all there is"))
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "GET").split(", ")))
        refused = Unimplemented(Reason.REASON_METHOD_NOT_ALLOWED, f"{where}: {allowed} are allowed", allow=allowed)
        return refusal(refused, http_status=405, headers={"Allow": allowed})
    return refusal(InvalidArgument(Reason.REASON_INVALID_BODY, error.detail), http_status=error.status_code)
