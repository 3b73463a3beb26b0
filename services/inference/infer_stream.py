"""Many requests on one stream: each answered by a task of its own, told apart by their ids, none harming another.

Knows how answers are gathered; nothing of how one is made.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from octavo.errors import OctavoError
from octavo.open_inference.open_inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

STREAM_LIMIT = 256
"""Requests of one stream that may be under way at the same time; more are not read before one of them is over."""

Answers = Callable[[ModelInferRequest], AsyncIterator[ModelInferResponse]]


class InferStream:
    """The answers to a stream of requests, as they come. A failing request is told by its id; the stream goes on."""

    def __init__(self, requests: AsyncIterator[ModelInferRequest], answers: Answers, logger: logging.Logger) -> None:
        self._requests = requests
        self._answers = answers
        self._logger = logger
        self._ready: asyncio.Queue[ModelStreamInferResponse | None] = asyncio.Queue(STREAM_LIMIT)
        self._room = asyncio.Semaphore(STREAM_LIMIT)
        self._reading: asyncio.Task[None] | None = None

    async def __aiter__(self) -> AsyncIterator[ModelStreamInferResponse]:
        self._reading = asyncio.create_task(self._read())
        try:
            while answer := await self._ready.get():
                yield answer
            await self._reading
        finally:
            self.leave()

    def leave(self) -> None:
        """Ends everything that is under way."""
        if self._reading:
            self._reading.cancel()

    async def _read(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                async for request in self._requests:
                    await self._room.acquire()
                    group.create_task(self._complete(request))
        finally:
            # Cancelled, nobody takes answers any more: waiting for room among them would never end.
            if self._reading and not self._reading.cancelling():
                await self._ready.put(None)

    async def _complete(self, request: ModelInferRequest) -> None:
        try:
            async for answer in self._answers(request):
                await self._ready.put(ModelStreamInferResponse(infer_response=answer))
        except OctavoError as error:
            await self._ready.put(_failed(request, error.message))
        except Exception:
            self._logger.exception("a defect in one request of a stream, id %r", request.id)
            await self._ready.put(_failed(request, f"a defect of this server; its log has the details: {request.id!r}"))
        finally:
            self._room.release()


def _failed(request: ModelInferRequest, message: str) -> ModelStreamInferResponse:
    response = ModelInferResponse(model_name=request.model_name, id=request.id)
    response.parameters["triton_final_response"].bool_param = True
    return ModelStreamInferResponse(error_message=message, infer_response=response)
