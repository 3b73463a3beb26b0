"""Streams over HTTP as the servers write them."""

import asyncio
import json

import pytest

from benchmarks.callers import HttpCaller, octavo_tokens, openai_tokens
from benchmarks.load import RefusedError


@pytest.fixture
async def answering():
    """Serves the same bytes to whoever asks; answers the port."""
    servers = []

    async def start(content):
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(content)
            await writer.drain()
            writer.close()

        servers.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        return servers[-1].sockets[0].getsockname()[1]

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


def chunked(*pieces, status="200 OK"):
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + body + b"0\r\n\r\n"


async def counts(port, count=octavo_tokens):
    caller = HttpCaller(port, "/", lambda number: {"number": number}, count)
    return [tokens async for tokens in caller(0)]


async def test_events_are_whole_wherever_the_chunks_are_cut(answering):
    event = b"event: message\ndata: " + json.dumps({"chunk": {"tokenIds": [1, 2]}}).encode() + b"\n\n"
    end = b"event: done\ndata: {}\n\n"
    text = event + b": ping\n\n" + event + end
    for cut in range(1, len(text), 7):
        assert await counts(await answering(chunked(text[:cut], text[cut:]))) == [2, 2]


async def test_openai_events_count_the_tokens_they_name_or_one():
    assert openai_tokens({"choices": [{"text": "a", "token_ids": [3, 4]}]}) == 2
    assert openai_tokens({"choices": [{"text": "a"}]}) == 1
    assert openai_tokens({"choices": [{"text": "", "finish_reason": "length"}]}) == 0
    assert openai_tokens({"choices": [], "usage": {}}) == 0
    with pytest.raises(ValueError, match="too long"):
        openai_tokens({"error": "too long"})


async def test_a_busy_server_refuses_and_says_when_to_come_again(answering):
    port = await answering(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n{}")
    with pytest.raises(RefusedError) as caught:
        await counts(port)
    assert caught.value.has_delay


async def test_any_other_answer_is_an_error_with_its_words(answering):
    with pytest.raises(ValueError, match=r"HTTP 400: .*no such model"):
        await counts(await answering(b"HTTP/1.1 400 Bad Request\r\n\r\nno such model"))
