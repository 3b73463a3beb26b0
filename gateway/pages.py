"""What a browser sees: /docs with its assets, /openapi.json, and / that leads there. All from this machine."""

import hashlib
from pathlib import Path

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway import openapi
from gateway.contract import Contract
from gateway.middleware import set_route
from gateway.routes import RouteTable

_ASSETS = Path(__file__).parent / "assets"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Pages:
    """Bytes made once, answered with an ETag."""

    def __init__(self, contract: Contract, table: RouteTable) -> None:
        self._openapi = orjson.dumps(openapi.document(contract, table))
        self._assets = {path.name: path.read_bytes() for path in _ASSETS.iterdir() if path.suffix in _MEDIA_TYPES}

    def routes(self) -> list[Route]:
        """The routes of all pages."""
        return [
            Route("/", self._index),
            Route("/openapi.json", self._document),
            Route("/docs", self._docs),
            Route("/docs/{asset}", self._asset),
            Route("/favicon.ico", self._icon),
        ]

    async def _index(self, request: Request) -> Response:
        set_route(request.scope, "/")
        return RedirectResponse("/docs")

    async def _document(self, request: Request) -> Response:
        set_route(request.scope, "/openapi.json")
        return _answer(request, self._openapi, "application/json")

    async def _docs(self, request: Request) -> Response:
        set_route(request.scope, "/docs")
        return _answer(request, self._assets["docs.html"], "text/html")

    async def _asset(self, request: Request) -> Response:
        set_route(request.scope, "/docs/{asset}")
        name = request.path_params["asset"]
        if name not in self._assets:
            raise HTTPException(404)
        return _answer(request, self._assets[name], _MEDIA_TYPES[Path(name).suffix])

    async def _icon(self, request: Request) -> Response:
        set_route(request.scope, "/favicon.ico")
        return _answer(request, self._assets["icon.svg"], "image/svg+xml")


def _answer(request: Request, body: bytes, media_type: str) -> Response:
    etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    headers = {"etag": etag, "cache-control": "no-cache", "content-security-policy": _POLICY}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)
