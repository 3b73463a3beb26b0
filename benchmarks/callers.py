"""How the servers are called: ours over gRPC, any over HTTP with server-sent events. One request is one stream.

HTTP is spoken by hand, one connection a request: a client library costs more than some servers on the same machine.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.load import RefusedError
from octavo.client import AsyncClient
from octavo.errors import ResourceExhausted
from octavo.v1.inference_pb2 import GenerationParameters, StreamGenerateRequest

Body = Callable[[int], Mapping[str, object]]
"""The JSON of the request of that number."""


@dataclass(frozen=True)
class GrpcCaller:
    """Our own contract."""

    client: AsyncClient
    model: str
    prompts: list[list[int]]
    new: int

    async def __call__(self, number: int) -> AsyncIterator[int]:
        request = StreamGenerateRequest(
            model=self.model,
            prompt_token_ids=self.prompts[number % len(self.prompts)],
            parameters=GenerationParameters(max_tokens=self.new, temperature=0, ignore_eos=True),
        )
        try:
            async for event in self.client.inference.StreamGenerate(request):
                yield len(event.chunk.token_ids)
        except ResourceExhausted as error:
            raise RefusedError(has_delay=error.retry_after_s is not None) from None


@dataclass(frozen=True)
class HttpCaller:
    """A POST whose answer is a stream of events; `count` says how many tokens one brought."""

    port: int
    path: str
    body: Body
    count: Callable[[dict[str, Any]], int]

    async def __call__(self, number: int) -> AsyncIterator[int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            content = json.dumps(self.body(number)).encode()
            headers = {
                "Host": f"127.0.0.1:{self.port}",
                "Content-Type": "application/json",
                "Accept": "text/event-stream",
                "Content-Length": str(len(content)),
                "Connection": "close",
            }
            lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
            writer.write("\r\n".join(lines).encode() + content)
            status, answered = _head(await reader.readuntil(b"\r\n\r\n"))
            if status in (429, 503):
                raise RefusedError(has_delay="retry-after" in answered)
            if status != 200:
                raise ValueError(f"HTTP {status}: {(await reader.read(300)).decode(errors='replace')}")
            async for event in _events(reader):
                yield self.count(event)
        finally:
            writer.close()


def octavo_tokens(event: dict[str, Any]) -> int:
    """Of our stream's messages, as JSON; integers of 64 bits are text there, these have 32."""
    if "code" in event:
        raise ValueError(str(event)[:300])
    return len(event.get("chunk", {}).get("tokenIds", ()))


def openai_tokens(event: dict[str, Any]) -> int:
    """As many as an event names; one for each event with a choice where a server names none."""
    if "error" in event:
        raise ValueError(str(event["error"])[:300])
    choice: dict[str, Any] = next(iter(event.get("choices", ())), {})
    if (token_ids := choice.get("token_ids")) is not None:
        return len(token_ids)
    return 1 if choice and (choice["text"] or not choice.get("finish_reason")) else 0


def _head(block: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers, names in small letters."""
    first, *lines = block.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The `data:` of each server-sent event in a chunked body."""
    text = b""
    while size := int(await reader.readline(), 16):
        text += (await reader.readexactly(size + 2))[:-2].replace(b"\r\n", b"\n")
        *whole, text = text.split(b"\n\n")
        for event in whole:
            for line in event.split(b"\n"):
                if line.startswith(b"data:") and line[5:].strip() not in (b"[DONE]", b"{}"):
                    yield json.loads(line[5:])
