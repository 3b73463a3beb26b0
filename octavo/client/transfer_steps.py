"""The steps that transfers are made of, and two drivers that take them: on an event loop, or in a thread.

A script yields a step and gets what comes of it, or the error; it knows nothing of how the step is taken.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from octavo.errors import OctavoError
from octavo.v1.blobs_pb2 import ReadBlobRequest, WriteBlobRequest

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Ask:
    """Call a unary RPC; its answer comes back."""

    rpc: str
    request: Any


@dataclass(frozen=True, slots=True)
class Send:
    """Stream an upload; the blob comes back."""

    requests: Iterator[WriteBlobRequest]


@dataclass(frozen=True, slots=True)
class Receive:
    """Stream a blob into `sink`, chunk by chunk."""

    request: ReadBlobRequest
    sink: Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Work:
    """Run something that blocks; what it returns comes back."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """Let time pass."""

    seconds: float


Step: TypeAlias = Ask | Send | Receive | Work | Wait
Script: TypeAlias = Generator[Step, Any, _Result]


async def drive(blobs: Any, script: Script[_Result]) -> _Result:
    """Takes the steps of a script on the event loop."""
    answer: Any = None
    failure: OctavoError | None = None
    with contextlib.closing(script):
        while True:
            try:
                step = script.throw(failure) if failure else script.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            failure = None
            try:
                answer = await _taken(blobs, step)
            except OctavoError as error:
                failure = error


async def _taken(blobs: Any, step: Step) -> Any:
    match step:
        case Ask():
            return await getattr(blobs, step.rpc)(step.request)
        case Send():
            return await blobs.WriteBlob(_read_ahead(step.requests))
        case Receive():
            async for response in blobs.ReadBlob(step.request):
                await _in_thread(partial(step.sink, response.chunk))
            return None
        case Work():
            return await _in_thread(step.work)
        case Wait():
            return await asyncio.sleep(step.seconds)


async def _in_thread(work: Callable[[], Any]) -> Any:
    """Runs `work` in a thread. Who is cancelled waits for its end: the script is about to close what it uses."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def _read_ahead(requests: Iterator[WriteBlobRequest]) -> AsyncIterator[WriteBlobRequest]:
    while (request := await asyncio.to_thread(next, requests, None)) is not None:
        yield request


def drive_blocking(blobs: Any, script: Script[_Result]) -> _Result:
    """Takes the steps of a script in this thread."""
    answer: Any = None
    failure: OctavoError | None = None
    with contextlib.closing(script):
        while True:
            try:
                step = script.throw(failure) if failure else script.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            failure = None
            try:
                answer = _taken_blocking(blobs, step)
            except OctavoError as error:
                failure = error


def _taken_blocking(blobs: Any, step: Step) -> Any:
    match step:
        case Ask():
            return getattr(blobs, step.rpc)(step.request)
        case Send():
            return blobs.WriteBlob(step.requests)
        case Receive():
            for response in blobs.ReadBlob(step.request):
                step.sink(response.chunk)
            return None
        case Work():
            return step.work()
        case Wait():
            return time.sleep(step.seconds)
