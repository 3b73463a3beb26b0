"""Which RPC answers which HTTP request: read from google.api.http alone, so a new RPC needs no line here."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import MethodDescriptor

from gateway import templates
from gateway.contract import Contract, grpc_path, service_name
from gateway.templates import Matcher, Template, TemplateError

_PATTERNS = ("get", "put", "post", "delete", "patch")
_ANY_METHOD = "*"


@dataclass(frozen=True, slots=True)
class Route:
    """One HTTP binding of one RPC; `body` and `response_body` as in google.api.HttpRule."""

    http_method: str
    template: Template
    method: MethodDescriptor
    body: str
    response_body: str
    is_declared: bool = True


class RouteNotFound(LookupError):
    """No binding has this path, whatever the HTTP method."""


class MethodNotAllowed(LookupError):
    """The path is bound, but to other HTTP methods."""

    def __init__(self, allowed: list[str]) -> None:
        super().__init__(", ".join(allowed))
        self.allowed = allowed


class RouteTable:
    """All bindings of a contract. Two that answer the same request are refused when the table is made."""

    def __init__(self, routes: Collection[Route]) -> None:
        """Raises TemplateError for duplicates."""
        self.routes = tuple(routes)
        self._matchers: dict[str, Matcher[Route]] = {}
        for route in routes:
            self._matchers.setdefault(route.http_method, Matcher()).add(route.template, route)

    @classmethod
    def of(cls, contract: Contract, services: Collection[str]) -> "RouteTable":
        """The bindings of the named services, and `POST /package.Service/Method` for each of their unary RPCs."""
        chosen = [method for method in contract.methods() if service_name(method) in services]
        return cls([route for method in chosen for route in (*_declared(method), *_automatic(method))])

    def find(self, http_method: str, raw_path: str) -> tuple[Route, dict[str, str]]:
        """The route and its bindings; raises RouteNotFound, MethodNotAllowed, or templates.PathError."""
        path = templates.split(raw_path)
        wanted = "GET" if http_method == "HEAD" else http_method
        for candidate in (wanted, _ANY_METHOD):
            found = self._matchers[candidate].match(path) if candidate in self._matchers else None
            if found is not None:
                return found
        allowed = self._allowed(path)
        raise MethodNotAllowed(allowed) if allowed else RouteNotFound(raw_path)

    def allowed(self, raw_path: str) -> list[str]:
        """The HTTP methods bound to a path, HEAD and OPTIONS with them; empty when there are none."""
        return self._allowed(templates.split(raw_path))

    def _allowed(self, path: list[str]) -> list[str]:
        found = {http_method for http_method, matcher in self._matchers.items() if matcher.match(path)}
        if not found:
            return []
        return sorted(found | {"OPTIONS"} | ({"HEAD"} if "GET" in found else set()))


def _declared(method: MethodDescriptor) -> Iterator[Route]:
    options = method.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return
    if method.client_streaming:
        raise TemplateError(f"{method.full_name} streams from the client: it can have no HTTP binding")
    rule = options.Extensions[annotations_pb2.http]
    for binding in (rule, *rule.additional_bindings):
        http_method, path = _pattern(binding, method)
        yield Route(http_method, templates.parse(path), method, binding.body, binding.response_body)


def _pattern(rule: http_pb2.HttpRule, method: MethodDescriptor) -> tuple[str, str]:
    kind = rule.WhichOneof("pattern")
    if kind == "custom":
        return rule.custom.kind.upper(), rule.custom.path
    if kind not in _PATTERNS:
        raise TemplateError(f"{method.full_name} has an HTTP rule without a path")
    return kind.upper(), getattr(rule, kind)


def _automatic(method: MethodDescriptor) -> Iterator[Route]:
    if not (method.client_streaming or method.server_streaming):
        yield Route("POST", templates.parse(grpc_path(method)), method, "*", "", is_declared=False)
