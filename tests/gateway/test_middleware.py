"""What happens around every request: id, span, metrics, log line, limits, defects."""

import asyncio
import logging

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from gateway.middleware import Guarded, HttpMetrics, Observed
from octavo.serving import ProcessMetrics, Telemetry
from tests.gateway.live import serving

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(autouse=True)
def propagated(monkeypatch) -> None:
    """A program's own logging, configured by another test, must not keep lines from caplog."""
    monkeypatch.setattr(logging.getLogger("octavo"), "propagate", True)


async def test_a_span_is_named_by_method_and_template_and_carries_the_callers_trace(gateway, shop) -> None:
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    await gateway.http.get("/v1/shelves/1/books/2", headers=headers)
    (span,) = gateway.spans.get_finished_spans()
    assert span.name == "GET /v1/{name=shelves/*/books/*}"
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.attributes["http.route"] == "/v1/{name=shelves/*/books/*}"
    assert span.attributes["http.response.status_code"] == 200
    # The service's parent is the gateway's span, not the caller's.
    assert shop.metadata["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"


async def test_durations_are_counted_by_template_and_never_by_path(gateway) -> None:
    for book in range(3):
        await gateway.http.get(f"/v1/shelves/1/books/{book}")
    await gateway.http.get("/v1/nowhere/special")
    text = (await gateway.http.get("/metrics")).text
    name = "octavo_http_server_request_duration_seconds_count"
    labels = 'http_request_method="GET",http_response_status_code="200",http_route="/v1/{name=shelves/*/books/*}"'
    assert f"{name}{{{labels}}} 3.0" in text
    assert 'http_response_status_code="404",http_route=""' in text
    assert "special" not in text


async def test_a_strange_method_does_not_become_a_label(gateway) -> None:
    assert (await gateway.http.request("PROPFIND", "/v1/books")).status_code == 405
    assert "PROPFIND" not in (await gateway.http.get("/metrics")).text


@pytest.mark.parametrize("given", ["", "has space", "x" * 200, 'quote"'])
async def test_a_request_id_that_is_missing_or_strange_is_replaced(gateway, given) -> None:
    answer = await gateway.http.get("/livez", headers={"X-Request-Id": given} if given else {})
    assert len(answer.headers["x-request-id"]) == 36


async def test_a_log_line_has_the_facts_and_not_the_query(gateway, caplog) -> None:
    with caplog.at_level(logging.INFO, "octavo.gateway"):
        await gateway.http.get("/v1/books?pageToken=secret", headers={"X-Request-Id": "me"})
    record = next(record for record in caplog.records if "/v1/books" in record.getMessage())
    assert (record.status, record.request_id) == (200, "me")
    assert "secret" not in caplog.text


async def test_a_body_over_the_limit_is_413_whether_announced_or_not(start, shop) -> None:
    async def pieces():
        for _ in range(4):
            yield b" " * 500

    async with start(max_body_bytes=1000) as gateway:
        for content in (b" " * 1001, pieces()):
            answer = await gateway.http.post("/v1/echo", content=content)
            assert answer.status_code == 413
            assert answer.json()["error"]["details"][0]["metadata"] == {"limit_bytes": "1000"}
        assert (await gateway.http.post("/v1/echo", content=b" " * 1000)).status_code == 200
    assert len(shop.requests) == 1


async def test_a_body_that_stops_coming_is_408(start) -> None:
    async with start(body_timeout_s=0.1) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_a_defect_is_told_in_one_sentence_and_logged_in_full(caplog, contract) -> None:
    async def broken(_):
        raise RuntimeError("the password is swordfish")

    import httpx

    telemetry = Telemetry.create("gateway", ProcessMetrics())
    application = Starlette(
        routes=[Route("/broken", broken)],
        middleware=[
            Middleware(Observed, telemetry, HttpMetrics(telemetry.collector)),
            Middleware(Guarded, telemetry, contract.pool, 1000, 1.0),
        ],
    )
    async with serving(application) as url, httpx.AsyncClient(base_url=url) as http:
        answer = await http.get("/broken", headers={"X-Request-Id": "me"})
    assert answer.status_code == 500
    assert answer.json()["error"]["details"][0]["reason"] == "INTERNAL"
    assert "me" in answer.json()["error"]["message"]
    assert "swordfish" not in answer.text
    assert "swordfish" in caplog.text


async def test_browsers_of_other_origins_are_let_in_only_where_they_are_listed(start) -> None:
    headers = {"Origin": "https://ours.example", "Access-Control-Request-Method": "POST"}
    async with start(allow_origins="https://ours.example") as gateway:
        answer = await gateway.http.options("/v1/echo", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://ours.example"
    async with start() as gateway:
        assert "access-control-allow-origin" not in (await gateway.http.options("/v1/echo", headers=headers)).headers
