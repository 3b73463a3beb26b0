"""The Open Inference Protocol on the wire, with Triton's extensions, for clients that already speak it.

Text models: a request becomes one of octavo.v1.Inference, and its answer becomes a tensor. Models of tensors are asked
here alone. Models are named by their deployment, or by their model; a version is a number.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from math import inf
from typing import Any, Protocol, cast

import octavo
from octavo.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable, Unimplemented
from octavo.open_inference import open_inference_pb2, open_inference_pb2_grpc
from octavo.open_inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from octavo.v1 import inference_pb2
from octavo.v1.errors_pb2 import Reason
from services.inference import call_terms, model_description, parameters, tensors, text_tensors
from services.inference.batch_queue import TensorRequest
from services.inference.call_terms import CallTerms
from services.inference.infer_stream import InferStream
from services.inference.repository import Repository
from services.inference.roster import Roster
from services.inference.served_model import ServedModel
from services.inference.servicer import Context, InferenceServicer
from services.inference.sub_call import SubCall
from services.inference.tensor_model import TensorModel
from services.inference.tensors import Array

EXTENSIONS = (
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
MESSAGE_LIMIT_BYTES = (1 << 31) - (1 << 16)
"""What protobuf can hold, less room for names."""
INLINE_BYTES = 1 << 20
"""Larger answers are put into bytes beside the event loop."""


class Find(Protocol):
    """Says who answers to a name, ready to be asked."""

    def __call__(self, reference: str, *, takes_turn: bool = True) -> Awaitable[ServedModel]: ...


class OpenInferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with the same models, and the same bits, as `inference` does. Without a `repository` none is changed."""

    def __init__(
        self,
        roster: Roster,
        inference: InferenceServicer,
        find: Find,
        *,
        repository: Callable[[], Repository | None],
        is_ready: Callable[[], bool],
        logger: logging.Logger,
    ) -> None:
        self._roster = roster
        self._inference = inference
        self._find_anywhere = find
        self._repository = repository
        self._is_ready = is_ready
        self._logger = logger

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
        served = await self._find_anywhere(self._reference(request.name, request.version), takes_turn=False)
        siblings = [other for other in self._roster.models.values() if other.key.model == served.key.model]
        return model_description.metadata(request.name, served, siblings)

    async def ModelConfig(
        self, request: open_inference_pb2.ModelConfigRequest, context: Context
    ) -> open_inference_pb2.ModelConfigResponse:
        served = await self._find_anywhere(self._reference(request.name, request.version), takes_turn=False)
        return open_inference_pb2.ModelConfigResponse(config=model_description.config(request.name, served))

    async def ModelStatistics(
        self, request: open_inference_pb2.ModelStatisticsRequest, context: Context
    ) -> open_inference_pb2.ModelStatisticsResponse:
        chosen = [served for served in self._roster.models.values() if served.loaded]
        if request.name:
            self._find(request.name, request.version)  # raises for what nobody serves
            chosen = [
                served
                for served in chosen
                if request.name in model_description.names(served, self._roster)
                and request.version in ("", str(served.key.number))
            ]
        stats = [
            model_description.statistics(request.name or served.key.model.removeprefix("models/"), served)
            for served in chosen
        ]
        return open_inference_pb2.ModelStatisticsResponse(model_stats=stats)

    async def RepositoryIndex(
        self, request: open_inference_pb2.RepositoryIndexRequest, context: Context
    ) -> open_inference_pb2.RepositoryIndexResponse:
        models = [
            served
            for served in (*self._roster.draining, *self._roster.models.values())
            if served.is_available or not request.ready
        ]
        return open_inference_pb2.RepositoryIndexResponse(models=model_description.index(models, self._roster))

    async def RepositoryModelLoad(
        self, request: open_inference_pb2.RepositoryModelLoadRequest, context: Context
    ) -> open_inference_pb2.RepositoryModelLoadResponse:
        name = _model_name(request)
        await self._changeable().load(name, _load_number(request.parameters))
        return open_inference_pb2.RepositoryModelLoadResponse(model_name=name, isLoaded=True)

    async def RepositoryModelUnload(
        self, request: open_inference_pb2.RepositoryModelUnloadRequest, context: Context
    ) -> open_inference_pb2.RepositoryModelUnloadResponse:
        name = _model_name(request)
        # Nothing depends on a model here: with its dependents or without is the same.
        _refuse_strays(request.parameters, {"unload_dependents"})
        await self._changeable().unload(name)
        return open_inference_pb2.RepositoryModelUnloadResponse(model_name=name, isUnloaded=True)

    async def ModelInfer(self, request: ModelInferRequest, context: Context) -> ModelInferResponse:
        terms = call_terms.read(request)
        call = SubCall(context, terms.timeout_s)
        context.add_done_callback(lambda _: call.end())  # type: ignore[arg-type] # the stub errs
        reference = self._reference(request.model_name, request.model_version)
        served = await self._find_anywhere(reference)
        if isinstance(served.loaded, TensorModel):
            return await _tensors_answer(request, served, terms, call)
        asked = inference_pb2.GenerateRequest(model=reference, priority=terms.priority)
        text_tensors.read(request, asked)
        parameters.check(asked)
        call.check_time()
        # One answer with the whole text, where Triton refuses a unary call of a model that may answer many times.
        reply = await self._inference.generate(served, asked, cast(Context, call))
        answer = text_tensors.answer(request, reply.version, [completion.text for completion in reply.completions])
        text_tensors.add_ending(answer, reply.completions[0].finish_reason, reply.usage)
        return answer

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[ModelInferRequest], context: Context
    ) -> AsyncIterator[open_inference_pb2.ModelStreamInferResponse]:
        """Many requests on one stream; a failing one is told by its id, and the others go on."""
        stream = InferStream(request_iterator, lambda request: self._answers(request, context), self._logger)
        # gRPC drops the generator of a stream whose caller has left; only this is called at once.
        context.add_done_callback(lambda _: stream.leave())  # type: ignore[arg-type] # the stub errs
        async for answer in stream:
            yield answer

    async def _answers(self, request: ModelInferRequest, context: Context) -> AsyncIterator[ModelInferResponse]:
        """The text as it comes; then, if asked for, an empty answer that says that it was the last."""
        terms = call_terms.read(request)
        call = SubCall(context, terms.timeout_s)
        try:
            reference = self._reference(request.model_name, request.model_version)
            served = await self._find_anywhere(reference)
            if isinstance(served.loaded, TensorModel):
                yield _final(await _tensors_answer(request, served, terms, call))
                return
            asked = inference_pb2.StreamGenerateRequest(model=reference, priority=terms.priority)
            text_tensors.read(request, asked)
            parameters.check(asked)
            call.check_time()
            async for event in self._inference.stream(served, asked, cast(Context, call)):
                if event.HasField("chunk"):
                    answer = text_tensors.answer(request, served.key.version, [event.chunk.text])
                    answer.parameters["triton_final_response"].bool_param = False
                    yield answer
                elif event.HasField("done") and terms.wants_final:
                    answer = text_tensors.empty_answer(request, event.done.version)
                    text_tensors.add_ending(answer, event.done.ends[0].finish_reason, event.done.usage)
                    yield _final(answer)
        finally:
            call.end()

    async def SystemSharedMemoryStatus(
        self, request: Any, context: Context
    ) -> open_inference_pb2.SystemSharedMemoryStatusResponse:
        return open_inference_pb2.SystemSharedMemoryStatusResponse()

    async def SystemSharedMemoryRegister(self, request: Any, context: Context) -> Any:
        raise Unimplemented(Reason.REASON_NOT_IMPLEMENTED, _NO_SHARED_MEMORY)

    async def SystemSharedMemoryUnregister(
        self, request: Any, context: Context
    ) -> open_inference_pb2.SystemSharedMemoryUnregisterResponse:
        return open_inference_pb2.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: Any, context: Context
    ) -> open_inference_pb2.CudaSharedMemoryStatusResponse:
        return open_inference_pb2.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(self, request: Any, context: Context) -> Any:
        raise Unimplemented(Reason.REASON_NOT_IMPLEMENTED, _NO_SHARED_MEMORY)

    async def CudaSharedMemoryUnregister(
        self, request: Any, context: Context
    ) -> open_inference_pb2.CudaSharedMemoryUnregisterResponse:
        return open_inference_pb2.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: Any, context: Context) -> Any:
        raise Unimplemented(Reason.REASON_NOT_IMPLEMENTED, _NO_TRACE_SETTINGS)

    async def LogSettings(self, request: Any, context: Context) -> Any:
        raise Unimplemented(Reason.REASON_NOT_IMPLEMENTED, _NO_LOG_SETTINGS)

    def _find(self, name: str, version: str) -> ServedModel:
        return self._roster.find(self._reference(name, version), takes_turn=False)

    def _reference(self, name: str, version: str) -> str:
        """Our name for a model of the protocol. Raises InvalidArgument for a version that is no number."""
        deployment = f"deployments/{name}"
        if version:
            if not version.isdecimal():
                raise InvalidArgument.field("model_version", f"{version!r} is not a number, such as 3")
            targets = (*self._roster.routes.get(deployment, ()), *self._roster.pending.get(deployment, ()))
            behind = (target.key.version for target in targets if str(target.key.number) == version)
            return next(behind, f"models/{name}/versions/{version}")
        is_deployment = deployment in {*self._roster.routes, *self._roster.pending}
        return deployment if is_deployment else f"models/{name}"

    def _changeable(self) -> Repository:
        repository = self._repository()
        if repository is None:
            raise FailedPrecondition(
                Reason.REASON_REPOSITORY_FIXED,
                "this server loads nothing at its clients' wish (OCTAVO_INFERENCE_REPOSITORY_CONTROL); create, change "
                "or delete a deployment in the registry instead",
            )
        return repository


async def _tensors_answer(
    request: ModelInferRequest, served: ServedModel, terms: CallTerms, call: SubCall
) -> ModelInferResponse:
    if strays := call_terms.own_parameters(request):
        name = next(iter(strays))
        raise InvalidArgument.field(
            f"parameters[{name!r}]",
            "a model of tensors has no parameters but priority and timeout",
            reason=Reason.REASON_UNKNOWN_FIELD,
        )
    for index, output in enumerate(request.outputs):
        tensors.refuse_shared_memory(output.parameters, f"outputs[{index}]")
        if "classification" in output.parameters:
            raise Unimplemented(
                Reason.REASON_NOT_IMPLEMENTED, f"outputs[{index}]: classification is not served; ask for the tensor"
            )
    with served.lease_tensors() as model:
        asked = (
            await asyncio.to_thread(_request, request, model, terms, call)
            if tensors.is_long(request)
            else _request(request, model, terms, call)
        )
        outputs = dict(zip(asked.wanted, await model.answer(asked), strict=True))
    answer = text_tensors.empty_answer(request, served.key.version)
    if sum(array.nbytes for array in outputs.values()) > INLINE_BYTES:
        await asyncio.to_thread(_add_outputs, answer, outputs)
    else:
        _add_outputs(answer, outputs)
    return answer


def _request(request: ModelInferRequest, model: TensorModel, terms: CallTerms, call: SubCall) -> TensorRequest:
    return model.request(
        tensors.read(request),
        [output.name for output in request.outputs],
        priority=terms.priority,
        deadline_s=inf if call.deadline_s is None else call.deadline_s,
    )


def _add_outputs(answer: ModelInferResponse, outputs: Mapping[str, Array]) -> None:
    """Puts tensors into an answer. Raises ResourceExhausted for more than a message can hold."""
    size_bytes = sum(array.nbytes for array in outputs.values())
    if size_bytes > MESSAGE_LIMIT_BYTES:
        raise ResourceExhausted(
            Reason.REASON_LIMIT_EXCEEDED,
            f"the outputs have {size_bytes} bytes, more than the {MESSAGE_LIMIT_BYTES} that a message can hold; "
            "ask for some of them, or for fewer rows",
        )
    for name, array in outputs.items():
        tensors.add_output(answer, name, array)


def _final(answer: ModelInferResponse) -> ModelInferResponse:
    answer.parameters["triton_final_response"].bool_param = True
    return answer


def _model_name(
    request: open_inference_pb2.RepositoryModelLoadRequest | open_inference_pb2.RepositoryModelUnloadRequest,
) -> str:
    """The model's name: in field 2, or, in KServe's dialect, alone in field 1. Raises InvalidArgument for none."""
    name = request.model_name or request.repository_name
    if not name:
        raise InvalidArgument.field("model_name", "is empty; it is required", reason=Reason.REASON_MISSING_FIELD)
    return name


def _load_number(parameters: Mapping[str, open_inference_pb2.ModelRepositoryParameter]) -> int | None:
    """The version asked for, if one is. Raises InvalidArgument for what cannot be loaded."""
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise InvalidArgument.field(
                f"parameters[{name!r}]",
                "files and configuration are a version's own and cannot change; register a version that has them "
                "(serving.json holds batch sizes and delays), then load it",
            )
    _refuse_strays(parameters, {"version"})
    if "version" not in parameters:
        return None
    parameter = parameters["version"]
    value = getattr(parameter, parameter.WhichOneof("parameter_choice") or "string_param")
    if not str(value).isdecimal():
        raise InvalidArgument.field("parameters['version']", f"{value!r} is not a number, such as 3")
    return int(value)


def _refuse_strays(parameters: Mapping[str, Any], known: set[str]) -> None:
    for name in parameters.keys() - known:
        raise InvalidArgument.field(
            f"parameters[{name!r}]",
            f"is not a parameter; there is {', '.join(known)}",
            reason=Reason.REASON_UNKNOWN_FIELD,
        )


_NO_SHARED_MEMORY = "shared memory is not served: this server may be on another machine; send tensors in messages"
_NO_TRACE_SETTINGS = "traces are OpenTelemetry's: OCTAVO_OTLP_ENDPOINT and OCTAVO_TRACE_RATIO set them at the start"
_NO_LOG_SETTINGS = "the log is set at the start: OCTAVO_LOG_FORMAT"
