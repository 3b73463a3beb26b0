"""Keeps pages of other sites from using a gateway that asks nobody for a key.

A browser reaches loopback for any page it shows. Two headers that a page cannot forge tell them apart: `Host`, the
name that the browser looked up (a foreign name here is DNS rebinding), and `Origin`, whose page it is (a foreign one
that changes something is cross-site request forgery). Knows nothing of keys, routes or CORS answers.
"""

import ipaddress
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.problems import refusal
from octavo.errors import PermissionDenied
from octavo.v1.errors_pb2 import Reason

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
"""What changes nothing; another site's page cannot read the answers, for CORS does not let it."""


def listed(text: str) -> frozenset[str]:
    """The entries of a setting with commas, in lower case."""
    return frozenset(entry.strip().lower() for entry in text.split(",") if entry.strip())


class OwnPages:
    """Refuses, with 403, names that are not this machine's and changes that pages of other origins ask for."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str], origins: Iterable[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on. Raises Problem for the middleware around it to tell."""
        if scope["type"] == "http":
            hosts = _values(scope, b"host")
            for host in hosts:
                self._check_host(host)
            if scope["method"] not in _READS:
                for origin in _values(scope, b"origin"):
                    self._check_origin(origin, hosts)
        await self._app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        name = _name(host)
        if name in self._hosts or name == "localhost" or name.endswith(".localhost") or _is_address(name):
            return
        raise _refused(
            f"{name[:200]!r} is not a name of this gateway; use localhost, or add it to OCTAVO_GATEWAY_ALLOW_HOSTS",
            "host",
        )

    def _check_origin(self, origin: str, hosts: list[str]) -> None:
        # "null" is what a browser says of a page without an origin, such as one in a sandbox.
        if origin in self._origins or origin.partition("://")[2] in hosts:
            return
        raise _refused(
            f"pages of {origin[:200]!r} may not change anything here; add it to OCTAVO_GATEWAY_ALLOW_ORIGINS",
            "origin",
        )


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for key, value in scope["headers"] if key == name]


def _name(host: str) -> str:
    """The host without its port: `localhost`, `127.0.0.1`, `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    """Whether nobody had to look the name up, so that nobody could answer with our address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refused(message: str, header: str) -> Exception:
    return refusal(PermissionDenied(Reason.REASON_INVALID_HEADER, message, header=header))
