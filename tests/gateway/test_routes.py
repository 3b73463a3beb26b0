"""Which RPC answers which request, from the descriptors alone."""

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from gateway.contract import Contract, service_name
from gateway.routes import MethodNotAllowed, RouteNotFound, RouteTable
from gateway.settings import GatewaySettings
from gateway.templates import TemplateError
from octavo.addresses import CONTRACTS
from tests.gateway.conftest import SERVICE


@pytest.fixture(scope="module")
def table(contract) -> RouteTable:
    return RouteTable.of(contract, [SERVICE])


def contract_of(*rules: dict, client_streaming: bool = False) -> Contract:
    """A contract of one service whose RPCs have the given HTTP rules."""
    file = descriptor_pb2.FileDescriptorProto(name="x.proto", package="x", syntax="proto3")
    file.dependency.append("google/api/annotations.proto")
    request = file.message_type.add(name="M")
    request.field.add(name="name", number=1, type=9, label=1)
    service = file.service.add(name="S")
    for i, rule in enumerate(rules):
        method = service.method.add(
            name=f"R{i}", input_type=".x.M", output_type=".x.M", client_streaming=client_streaming
        )
        http = method.options.Extensions[annotations_pb2.http]
        custom = rule.pop("custom", None)
        if custom:
            http.custom.kind, http.custom.path = custom
        for key, value in rule.items():
            setattr(http, key, value)
    files = descriptor_pb2.FileDescriptorSet()
    for dependency in ("google/protobuf/descriptor.proto", "google/api/http.proto", "google/api/annotations.proto"):
        found = annotations_pb2.DESCRIPTOR.pool.FindFileByName(dependency)
        found.CopyToProto(files.file.add())
    files.file.append(file)
    return Contract(files)


@pytest.mark.parametrize(
    ("http_method", "path", "rpc"),
    [
        ("GET", "/v1/shelves/1/books/2", "GetBook"),
        ("HEAD", "/v1/shelves/1/books/2", "GetBook"),
        ("GET", "/v1/books/2", "GetBook"),
        ("GET", "/v1/books/2:download", "Download"),
        ("GET", "/v1/books/2:other", "GetBook"),
        ("GET", "/v1/books", "ListBooks"),
        ("PATCH", "/v1/shelves/1/books/2", "UpdateBook"),
        ("DELETE", "/v1/shelves/1/books/2", "DeleteBook"),
        ("POST", "/shop.v1.Shop/GetBook", "GetBook"),
        ("GET", "/v1/ticks:watch", "WatchTicks"),
    ],
)
def test_a_request_finds_its_rpc(table, http_method, path, rpc) -> None:
    assert table.find(http_method, path)[0].method.name == rpc


def test_a_path_of_other_methods_says_which(table) -> None:
    with pytest.raises(MethodNotAllowed) as refused:
        table.find("POST", "/v1/shelves/1/books/2")
    assert refused.value.allowed == ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH"]


def test_an_unknown_path_has_no_route(table) -> None:
    with pytest.raises(RouteNotFound):
        table.find("GET", "/v2/books")


def test_streaming_rpcs_have_no_automatic_route(table) -> None:
    with pytest.raises(RouteNotFound):
        table.find("POST", "/shop.v1.Shop/WatchTicks")
    with pytest.raises(RouteNotFound):
        table.find("POST", "/shop.v1.Shop/Collect")


def test_a_custom_method_is_a_method_and_a_star_is_any() -> None:
    table = RouteTable.of(contract_of({"custom": ("REPORT", "/a")}, {"custom": ("*", "/b")}), ["x.S"])
    assert table.find("REPORT", "/a")[0].method.name == "R0"
    assert table.find("LOCK", "/b")[0].method.name == "R1"


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (({"get": "/a/{name}"}, {"get": "/a/*"}), "same paths"),
        (({"get": "/a//b"},), "expected"),
        (({"body": "*"},), "without a path"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused_at_start_up(rules, words) -> None:
    with pytest.raises(TemplateError, match=words):
        RouteTable.of(contract_of(*map(dict, rules)), ["x.S"])


def test_a_client_stream_can_have_no_http_binding() -> None:
    with pytest.raises(TemplateError, match="streams from the client"):
        RouteTable.of(contract_of({"post": "/a"}, client_streaming=True), ["x.S"])


def test_every_rpc_of_the_suite_is_reachable_over_http_or_says_that_it_is_not() -> None:
    contract = Contract.load(GatewaySettings().contract)
    names = {name for names in CONTRACTS.values() for name in names}
    bound = {route.method.full_name for route in RouteTable.of(contract, names).routes if route.is_declared}
    for method in contract.methods():
        if service_name(method).startswith("octavo."):
            assert method.full_name in bound or "gRPC only" in contract.comment(method.full_name), method.full_name


def test_every_service_of_the_contract_has_an_address() -> None:
    contract = Contract.load(GatewaySettings().contract)
    names = {name for names in CONTRACTS.values() for name in names}
    assert {service.full_name for service in contract.services} <= names
