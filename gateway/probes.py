"""What watches the gateway: /livez, /healthz and /metrics."""

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.middleware import set_route
from gateway.upstreams import Upstreams

_SERVING = "SERVING"


class Probes:
    """Liveness is the event loop's own answer; readiness asks every program behind the gateway."""

    def __init__(self, upstreams: Upstreams, collector: CollectorRegistry) -> None:
        self._upstreams = upstreams
        self._collector = collector

    def routes(self) -> list[Route]:
        """The routes of all three."""
        return [
            Route("/livez", self._livez),
            Route("/healthz", self._healthz),
            Route("/metrics", self._metrics),
        ]

    async def _livez(self, request: Request) -> Response:
        set_route(request.scope, "/livez")
        return _json({"status": "alive"}, 200)

    async def _healthz(self, request: Request) -> Response:
        """200 when every program serves, else 503; the body says which do."""
        set_route(request.scope, "/healthz")
        programs = await self._upstreams.health()
        is_ready = all(status == _SERVING for status in programs.values())
        body = {"status": "ready" if is_ready else "not ready", "programs": dict(programs)}
        return _json(body, 200 if is_ready else 503)

    async def _metrics(self, request: Request) -> Response:
        set_route(request.scope, "/metrics")
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._collector), media_type=content_type)


def _json(value: object, status: int) -> Response:
    return Response(orjson.dumps(value), status, {"cache-control": "no-store"}, "application/json")
