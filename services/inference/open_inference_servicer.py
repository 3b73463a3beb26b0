"""The Open Inference Protocol on the wire: text in, text out, for clients that already speak it.

A façade: a request becomes one of octavo.v1.Inference, and its answer becomes a tensor. Models are named by their
deployment, or by their model; a version is a number.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import octavo
from octavo.errors import FailedPrecondition, InvalidArgument, NotFound, OctavoError, Unavailable, Unimplemented
from octavo.open_inference import model_config_pb2, open_inference_pb2, open_inference_pb2_grpc
from octavo.v1 import inference_pb2
from octavo.v1.errors_pb2 import Reason
from services.inference import tensors
from services.inference.meter import Meter
from services.inference.roster import Roster
from services.inference.served_model import ServedModel
from services.inference.servicer import Context, InferenceServicer

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("model_configuration", "statistics", "parameters", "binary_tensor_data")
NO_PARAMETER = open_inference_pb2.InferParameter()
STREAM_LIMIT = 256
"""Requests of one stream that may be under way at the same time."""

_STATES: Mapping[int, str] = {
    inference_pb2.SERVED_MODEL_STATE_DOWNLOADING: "LOADING",
    inference_pb2.SERVED_MODEL_STATE_VERIFYING: "LOADING",
    inference_pb2.SERVED_MODEL_STATE_READY: "READY",
    inference_pb2.SERVED_MODEL_STATE_DRAINING: "UNLOADING",
    inference_pb2.SERVED_MODEL_STATE_FAILED: "UNAVAILABLE",
}

InferRequest = open_inference_pb2.ModelInferRequest
InferResponse = open_inference_pb2.ModelInferResponse
StreamResponse = open_inference_pb2.ModelStreamInferResponse


class OpenInferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with the same models, and the same bits, as `inference` does."""

    def __init__(self, roster: Roster, inference: InferenceServicer, is_ready: Callable[[], bool]) -> None:
        self._roster = roster
        self._inference = inference
        self._is_ready = is_ready

    async def ServerLive(self, request: Any, context: Context) -> open_inference_pb2.ServerLiveResponse:
        return open_inference_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Context) -> open_inference_pb2.ServerReadyResponse:
        return open_inference_pb2.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(
        self, request: open_inference_pb2.ModelReadyRequest, context: Context
    ) -> open_inference_pb2.ModelReadyResponse:
        try:
            self._find(request.name, request.version)
        except (NotFound, Unavailable, FailedPrecondition):
            return open_inference_pb2.ModelReadyResponse(ready=False)
        return open_inference_pb2.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any, context: Context) -> open_inference_pb2.ServerMetadataResponse:
        return open_inference_pb2.ServerMetadataResponse(
            name="octavo", version=octavo.__version__, extensions=EXTENSIONS
        )

    async def ModelMetadata(
        self, request: open_inference_pb2.ModelMetadataRequest, context: Context
    ) -> open_inference_pb2.ModelMetadataResponse:
        served = self._find(request.name, request.version)
        tensor = open_inference_pb2.ModelMetadataResponse.TensorMetadata
        siblings = [other.key for other in self._roster.models.values() if other.key.model == served.key.model]
        return open_inference_pb2.ModelMetadataResponse(
            name=request.name,
            versions=sorted({str(key.number) for key in siblings}, key=int),
            platform=PLATFORM,
            inputs=[tensor(name=tensors.INPUT, datatype="BYTES", shape=[1])],
            outputs=[tensor(name=tensors.OUTPUT, datatype="BYTES", shape=[1])],
            properties={"version": served.key.version},
        )

    async def ModelConfig(
        self, request: open_inference_pb2.ModelConfigRequest, context: Context
    ) -> open_inference_pb2.ModelConfigResponse:
        self._find(request.name, request.version)
        text = model_config_pb2.TYPE_STRING
        config = model_config_pb2.ModelConfig(
            name=request.name,
            platform=PLATFORM,
            backend="octavo",
            input=[model_config_pb2.ModelInput(name=tensors.INPUT, data_type=text, dims=[1])],
            output=[model_config_pb2.ModelOutput(name=tensors.OUTPUT, data_type=text, dims=[1])],
            model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=True),
        )
        return open_inference_pb2.ModelConfigResponse(config=config)

    async def ModelStatistics(
        self, request: open_inference_pb2.ModelStatisticsRequest, context: Context
    ) -> open_inference_pb2.ModelStatisticsResponse:
        chosen = [self._find(request.name, request.version)] if request.name else list(self._roster.models.values())
        stats = [
            _statistics(served.key.model.removeprefix("models/"), str(served.key.number), served.loaded.engine.meter)
            for served in chosen
            if served.loaded
        ]
        return open_inference_pb2.ModelStatisticsResponse(model_stats=stats)

    async def RepositoryIndex(
        self, request: open_inference_pb2.RepositoryIndexRequest, context: Context
    ) -> open_inference_pb2.RepositoryIndexResponse:
        index = open_inference_pb2.RepositoryIndexResponse.ModelIndex
        models = [
            index(
                name=served.key.model.removeprefix("models/"),
                version=str(served.key.number),
                state=_STATES[served.state],
                reason=str(served.failure or ""),
            )
            for served in (*self._roster.models.values(), *self._roster.draining)
            if served.is_ready or not request.ready
        ]
        return open_inference_pb2.RepositoryIndexResponse(models=models)

    async def RepositoryModelLoad(
        self, request: open_inference_pb2.RepositoryModelLoadRequest, context: Context
    ) -> open_inference_pb2.RepositoryModelLoadResponse:
        raise Unimplemented(Reason.REASON_NOT_IMPLEMENTED, _WISHES)

    async def RepositoryModelUnload(
        self, request: open_inference_pb2.RepositoryModelUnloadRequest, context: Context
    ) -> open_inference_pb2.RepositoryModelUnloadResponse:
        raise Unimplemented(Reason.REASON_NOT_IMPLEMENTED, _WISHES)

    async def ModelInfer(self, request: InferRequest, context: Context) -> InferResponse:
        asked = inference_pb2.GenerateRequest(model=self._reference(request.model_name, request.model_version))
        tensors.read(request, asked)
        reply = await self._inference.Generate(asked, context)
        return tensors.answer(request, reply.version, [completion.text for completion in reply.completions])

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[InferRequest], context: Context
    ) -> AsyncIterator[StreamResponse]:
        """Many requests on one stream; a failing one is told by its id, and the others go on."""
        answers: asyncio.Queue[StreamResponse | None] = asyncio.Queue(STREAM_LIMIT)
        room = asyncio.Semaphore(STREAM_LIMIT)

        async def complete(request: InferRequest) -> None:
            try:
                async for answer in self._answers(request, context):
                    await answers.put(answer)
            except OctavoError as error:
                failed = InferResponse(model_name=request.model_name, id=request.id)
                await answers.put(StreamResponse(error_message=error.message, infer_response=failed))
            finally:
                room.release()

        async def read() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    async for request in request_iterator:
                        await room.acquire()
                        group.create_task(complete(request))
            finally:
                # Cancelled, nobody takes answers any more: waiting for room among them would never end.
                if not reading.cancelling():
                    await answers.put(None)

        reading = asyncio.create_task(read())
        try:
            while answer := await answers.get():
                yield answer
            await reading
        finally:
            reading.cancel()

    async def _answers(self, request: InferRequest, context: Context) -> AsyncIterator[StreamResponse]:
        """The text as it comes; then, if asked for, an empty answer that says that it was the last."""
        wants_final = request.parameters.get("triton_enable_empty_final_response", NO_PARAMETER).bool_param
        asked = inference_pb2.StreamGenerateRequest(model=self._reference(request.model_name, request.model_version))
        tensors.read(request, asked)
        async for event in self._inference.StreamGenerate(asked, context):
            if event.HasField("chunk"):
                yield StreamResponse(infer_response=tensors.answer(request, "", [event.chunk.text]))
            elif event.HasField("done") and wants_final:
                final = InferResponse(model_name=request.model_name, id=request.id)
                final.parameters["triton_final_response"].bool_param = True
                yield StreamResponse(infer_response=final)

    def _find(self, name: str, version: str) -> ServedModel:
        return self._roster.find(self._reference(name, version))

    def _reference(self, name: str, version: str) -> str:
        """Our name for a model of the protocol. Raises InvalidArgument for a version that is no number."""
        if version:
            if not version.isdecimal():
                raise InvalidArgument.field("model_version", f"{version!r} is not a number, such as 3")
            return f"models/{name}/versions/{version}"
        is_deployment = f"deployments/{name}" in {*self._roster.routes, *self._roster.pending}
        return f"deployments/{name}" if is_deployment else f"models/{name}"


def _statistics(name: str, version: str, meter: Meter) -> open_inference_pb2.ModelStatistics:
    duration = open_inference_pb2.StatisticDuration
    succeeded, failed = sum(meter.total_s.counts), sum(meter.failed_s.counts)
    work_s = max(0.0, meter.total_s.total - meter.queue_s.total)
    return open_inference_pb2.ModelStatistics(
        name=name,
        version=version,
        last_inference=int(meter.last_s * 1e3),
        inference_count=succeeded,
        execution_count=meter.steps,
        inference_stats=open_inference_pb2.InferStatistics(
            success=duration(count=succeeded, ns=int(meter.total_s.total * 1e9)),
            fail=duration(count=failed, ns=int(meter.failed_s.total * 1e9)),
            queue=duration(count=succeeded, ns=int(meter.queue_s.total * 1e9)),
            compute_infer=duration(count=succeeded, ns=int(work_s * 1e9)),
        ),
    )


_WISHES = "what is served follows the registry's deployments; create, change or delete a deployment instead"
