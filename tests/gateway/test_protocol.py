"""Requests whose head is too large are refused before they fill the memory."""

import asyncio

import pytest

from gateway.protocol import MAX_HEAD_BYTES


async def answer_to(gateway, *pieces: bytes) -> bytes:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for piece in pieces:
        writer.write(piece)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * (MAX_HEAD_BYTES + 1000),
        b"GET / HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD_BYTES + 1000),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_HEAD_BYTES // 5),
    ],
)
async def test_a_head_without_end_is_431(gateway, head) -> None:
    assert (await answer_to(gateway, head)).startswith(b"HTTP/1.1 431 ")


async def test_a_large_body_does_not_count_as_head(gateway) -> None:
    body = b" " * (MAX_HEAD_BYTES * 2)
    head = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert (await answer_to(gateway, head, body)).startswith(b"HTTP/1.1 200 ")


async def test_many_requests_on_one_connection_are_counted_one_by_one(gateway) -> None:
    once = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 30_000 + b"\r\n\r\n"
    last = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert (await answer_to(gateway, once, once, once, last)).count(b"HTTP/1.1 200 ") == 4


async def test_noise_is_400(gateway) -> None:
    assert (await answer_to(gateway, b"\x16\x03\x01 hello\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_server_that_leaves_ends_the_watches_and_not_the_answers(start, shop) -> None:
    started = asyncio.get_running_loop().time()
    async with start() as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        watch = await asyncio.open_connection(host, int(port))
        watch[1].write(b"GET /v1/ticks:watch?pauseS=0.05 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await watch[0].readuntil(b"tick 1")
        answer = await asyncio.open_connection(host, int(port))
        answer[1].write(b"GET /v1/books/a:slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await answer[0].readuntil(b"line 0")
    assert b"SHUTTING_DOWN" in await watch[0].read()
    assert b"line 2" in await answer[0].read()
    assert asyncio.get_running_loop().time() - started < 5
    watch[1].close()
    answer[1].close()
