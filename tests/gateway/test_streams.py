"""Server streams over HTTP: events and lines, errors early and late, heartbeats, resuming, leaving."""

import asyncio
import json
import time

import httpx
import pytest

SSE = {"Accept": "text/event-stream"}


def events_of(text: str) -> list[dict[str, str]]:
    """Parses an event stream as a browser does; comments are left out."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            events.append(fields)
    return events


async def test_a_stream_is_one_json_object_a_line(gateway) -> None:
    answer = await gateway.http.get("/v1/ticks:watch?count=3")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["result"]["sequence"] for line in lines] == ["1", "2", "3"]


async def test_a_browser_gets_numbered_events_and_a_done(gateway) -> None:
    answer = await gateway.http.get("/v1/ticks:watch?count=2", headers=SSE)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = events_of(answer.text)
    assert [(event["event"], event.get("id")) for event in events] == [
        ("message", "1"),
        ("message", "2"),
        ("done", None),
    ]
    assert json.loads(events[0]["data"]) == {"sequence": "1", "text": "tick 1\n"}


async def test_a_stream_goes_on_behind_the_last_event_that_was_seen(gateway, shop) -> None:
    answer = await gateway.http.get("/v1/ticks:watch?count=2", headers={**SSE, "Last-Event-ID": "41"})
    assert shop.requests[0].after_sequence == 41
    assert [event.get("id") for event in events_of(answer.text)] == ["42", "43", None]


@pytest.mark.parametrize("identity", ["x", "-1", "1" * 30])
async def test_an_event_id_that_is_none_is_refused(gateway, identity) -> None:
    answer = await gateway.http.get("/v1/ticks:watch?count=1", headers={**SSE, "Last-Event-ID": identity})
    assert answer.status_code == 400


@pytest.mark.parametrize("headers", [{}, SSE])
async def test_an_error_at_the_start_has_its_true_status(gateway, headers) -> None:
    answer = await gateway.http.get("/v1/ticks:watch?failAfter=0", headers=headers)
    assert answer.status_code == 429
    assert answer.json()["error"]["status"] == "RESOURCE_EXHAUSTED"


async def test_an_error_on_the_way_is_the_last_line(gateway) -> None:
    answer = await gateway.http.get("/v1/ticks:watch?failAfter=2")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.status_code == 200
    assert [next(iter(line)) for line in lines] == ["result", "result", "error"]
    assert (lines[2]["error"]["code"], lines[2]["error"]["message"]) == (429, "no more ticks")


async def test_an_error_on_the_way_is_the_last_event(gateway) -> None:
    events = events_of((await gateway.http.get("/v1/ticks:watch?failAfter=1", headers=SSE)).text)
    assert [event["event"] for event in events] == ["message", "error"]
    assert json.loads(events[1]["data"])["error"]["status"] == "RESOURCE_EXHAUSTED"


async def test_messages_come_when_they_are_made_and_not_all_at_the_end(gateway) -> None:
    async with gateway.http.stream("GET", "/v1/ticks:watch?pauseS=0.2&count=3", headers=SSE) as answer:
        arrivals = [time.perf_counter() async for _ in answer.aiter_raw()]
    assert arrivals[-1] - arrivals[0] > 0.3


async def test_a_quiet_stream_opens_and_sends_heartbeats(start) -> None:
    url = "/v1/ticks:watch?pauseS=60"
    async with start(heartbeat_s=0.05) as gateway, gateway.http.stream("GET", url, headers=SSE) as answer:
        assert answer.status_code == 200
        text = ""
        async for chunk in answer.aiter_text():
            text += chunk
            if text.count(": ping\n\n") >= 3:
                break


async def test_silence_for_too_long_ends_a_stream_with_an_error(start, shop) -> None:
    async with start(heartbeat_s=0.05, idle_s=0.2) as gateway:
        answer = await gateway.http.get("/v1/ticks:watch?pauseS=60", headers=SSE)
        last = events_of(answer.text)[-1]
        assert (last["event"], json.loads(last["data"])["error"]["status"]) == ("error", "DEADLINE_EXCEEDED")
        await asyncio.wait_for(shop.cancelled.wait(), 5)


@pytest.mark.parametrize("headers", [{}, SSE])
async def test_a_reader_that_leaves_frees_the_server(gateway, shop, headers) -> None:
    async with gateway.http.stream("GET", "/v1/ticks:watch?pauseS=0.05", headers=headers) as answer:
        await anext(answer.aiter_raw())
    await asyncio.wait_for(shop.cancelled.wait(), 5)


async def test_a_reader_that_leaves_before_the_first_message_frees_the_server(gateway, shop) -> None:
    waiting = asyncio.create_task(gateway.http.get("/v1/ticks:watch?pauseS=60"))
    while not shop.requests:
        await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait_for(shop.cancelled.wait(), 5)


async def test_a_watch_is_told_to_come_again_when_the_gateway_leaves(gateway, shop) -> None:
    async with gateway.http.stream("GET", "/v1/ticks:watch?pauseS=0.05", headers=SSE) as answer:
        text = ""
        async for chunk in answer.aiter_text():
            text += chunk
            if "event: error" not in text:
                gateway.drain()
    last = events_of(text)[-1]
    assert (last["event"], json.loads(last["data"])["error"]["details"][0]["reason"]) == ("error", "SHUTTING_DOWN")
    await asyncio.wait_for(shop.cancelled.wait(), 5)
    late = await gateway.http.get("/v1/ticks:watch?pauseS=60")
    assert (late.status_code, late.headers["retry-after"]) == (503, "1")


async def test_an_answer_under_way_is_finished_when_the_gateway_leaves(gateway) -> None:
    async with gateway.http.stream("GET", "/v1/books/a:slow") as answer:
        gateway.drain()
        assert len([line async for line in answer.aiter_lines()]) == 3


async def test_a_slow_reader_holds_the_server_back(gateway, shop) -> None:
    async with gateway.http.stream("GET", "/v1/ticks:watch?paddingBytes=100000") as answer:
        await anext(answer.aiter_lines())
        before = -1
        while shop.ticks != before:
            before = shop.ticks
            await asyncio.sleep(0.2)
    # What is under way fits into the buffers of two connections: the gateway keeps no queue of its own.
    assert before < 300


async def test_a_deadline_that_a_caller_sets_ends_a_stream(gateway) -> None:
    answer = await gateway.http.get("/v1/ticks:watch?pauseS=0.1", headers={**SSE, "Grpc-Timeout": "350m"})
    events = events_of(answer.text)
    assert events[-1]["event"] == "error"
    assert json.loads(events[-1]["data"])["error"]["code"] == 504


async def test_head_of_a_stream_is_its_headers_alone(gateway, shop) -> None:
    answer = await gateway.http.head("/v1/ticks:watch?pauseS=0.05", headers=SSE)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    await asyncio.wait_for(shop.cancelled.wait(), 5)


async def test_chunks_of_an_http_body_come_as_they_are_with_the_first_content_type(gateway) -> None:
    answer = await gateway.http.get("/v1/books/a:stream")
    assert (answer.headers["content-type"], answer.content) == ("application/epub+zip", b"onetwo")


async def test_content_in_chunks_comes_as_a_file_where_one_is_asked_for(gateway) -> None:
    answer = await gateway.http.get("/v1/books/a:read", headers={"Accept": "application/octet-stream"})
    assert (answer.headers["content-type"], answer.content) == ("application/octet-stream", b"\x00onetwo\xff")
    lines = (await gateway.http.get("/v1/books/a:read")).text.splitlines()
    assert json.loads(lines[0]) == {"result": {"chunk": "AG9uZQ==", "offset": "0"}}


@pytest.mark.parametrize("action", ["stream", "read"])
async def test_bytes_that_break_off_do_not_look_complete(gateway, action) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await gateway.http.get(f"/v1/books/broken:{action}", headers={"Accept": "application/octet-stream"})
