"""octavo.v1.Inference on the wire: reads requests, asks the domain, builds replies."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sized
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import grpc
import numpy as np

from octavo.errors import InvalidArgument, NotFound
from octavo.v1 import inference_pb2, inference_pb2_grpc
from octavo.v1.errors_pb2 import Reason
from services.inference import metrics, parameters, replies, scoring, text_answers
from services.inference.outbox import Delivery, Ending, Outbox, merged
from services.inference.roster import Roster
from services.inference.sequence import Sequence
from services.inference.served_model import LoadedModel, ServedModel

Context = grpc.aio.ServicerContext[Any, Any]
Request = inference_pb2.GenerateRequest | inference_pb2.StreamGenerateRequest
Given = ParamSpec("Given")
Answer = TypeVar("Answer")

INLINE_CHARACTERS = 4096
"""Texts of up to so many characters or tokens are turned into the other on the event loop, in about a millisecond;
longer ones beside it."""
TOKEN_LIMIT = 1 << 20
PAGE_SIZE, PAGE_LIMIT = 50, 1000


class InferenceServicer(inference_pb2_grpc.InferenceServicer):
    """Answers for the served models of a roster; `find` says who answers to a name."""

    def __init__(self, roster: Roster, find: Callable[[str], Awaitable[ServedModel]]) -> None:
        self._roster = roster
        self._find = find

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> inference_pb2.GenerateResponse:
        parameters.check(request)
        return await self.generate(await self._find(request.model), request, context)

    async def generate(
        self, served: ServedModel, request: inference_pb2.GenerateRequest, context: Context
    ) -> inference_pb2.GenerateResponse:
        """The answer of a served model to a request that is valid by `parameters.check`."""
        with served.lease() as loaded:
            async with _running(loaded, request, context, is_streaming=False) as sequences:
                found = {index: delivery async for index, delivery in merged([s.outbox for s in sequences])}
            deliveries = _chosen([found[index] for index in range(len(sequences))], request.parameters)
            metrics.describe(served.key.version, request.model, sequences)
            reply = replies.response(
                sequences, deliveries, served.key.version, loaded.tokenizer, _echoed(loaded, request)
            )
            if request.parameters.HasField("prompt_logprobs"):
                entries = await text_answers.prompt_logprobs(loaded, sequences[0].prompt, request.parameters)
                reply.prompt_logprobs.extend(entries)
        return reply

    async def StreamGenerate(
        self, request: inference_pb2.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.StreamGenerateResponse]:
        parameters.check(request)
        async for event in self.stream(await self._find(request.model), request, context):
            yield event

    async def stream(
        self, served: ServedModel, request: inference_pb2.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.StreamGenerateResponse]:
        """The same as it comes."""
        with served.lease() as loaded:
            async with _running(loaded, request, context, is_streaming=True) as sequences:
                if request.parameters.HasField("prompt_logprobs"):
                    entries = await text_answers.prompt_logprobs(loaded, sequences[0].prompt, request.parameters)
                    for event in replies.prompt(entries):
                        yield event
                if echoed := _echoed(loaded, request):
                    for index in range(len(sequences)):
                        yield replies.chunk(index, Delivery(echoed), loaded.tokenizer)
                endings: dict[int, Ending] = {}
                async for index, delivery in merged([sequence.outbox for sequence in sequences]):
                    if delivery.token_ids:
                        yield replies.chunk(index, delivery, loaded.tokenizer)
                    if delivery.ending:
                        endings[index] = delivery.ending
            metrics.describe(served.key.version, request.model, sequences)
        yield replies.done(sequences, [endings[index] for index in range(len(sequences))], served.key.version)

    async def Score(self, request: inference_pb2.ScoreRequest, context: Context) -> inference_pb2.ScoreResponse:
        served = await self._find(request.model)
        with served.lease() as loaded:
            return await text_answers.score(loaded, request, served.key.version)

    async def Embed(self, request: inference_pb2.EmbedRequest, context: Context) -> inference_pb2.EmbedResponse:
        served = await self._find(request.model)
        with served.lease() as loaded:
            return await text_answers.embed(loaded, request, served.key.version)

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        _require(request.text, "text")
        served = await self._find(request.model)
        with served.lease() as loaded:
            return await _beside(len(request.text), _tokenized, loaded, request.text, served.key.version)

    async def Detokenize(
        self, request: inference_pb2.DetokenizeRequest, context: Context
    ) -> inference_pb2.DetokenizeResponse:
        _require(request.token_ids, "token_ids")
        if len(request.token_ids) > TOKEN_LIMIT:
            raise InvalidArgument.field("token_ids", f"{len(request.token_ids)} tokens are more than {TOKEN_LIMIT}")
        served = await self._find(request.model)
        with served.lease() as loaded:
            loaded.check_ids(np.array(request.token_ids, np.int64), "token_ids")
            skip_special = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
            decode = partial(loaded.tokenizer.decode, skip_special=skip_special)
            text = await _beside(len(request.token_ids), decode, request.token_ids)
        return inference_pb2.DetokenizeResponse(text=text, version=served.key.version)

    async def ListServedModels(
        self, request: inference_pb2.ListServedModelsRequest, context: Context
    ) -> inference_pb2.ListServedModelsResponse:
        if request.page_size < 0:
            raise InvalidArgument.field("page_size", f"{request.page_size} is negative; 0 takes {PAGE_SIZE}")
        if request.page_token and not request.page_token.startswith("servedModels/"):
            raise InvalidArgument.field(
                "page_token", "is not one of this list; leave it out", reason=Reason.REASON_INVALID_PAGE_TOKEN
            )
        names = sorted(self._roster.present)
        # A page begins behind a name, so that models which come and go meanwhile shift nothing.
        rest = [name for name in names if name > request.page_token]
        page = rest[: min(request.page_size or PAGE_SIZE, PAGE_LIMIT)]
        return inference_pb2.ListServedModelsResponse(
            served_models=[self._reply(name) for name in page],
            next_page_token=page[-1] if len(page) < len(rest) else "",
            total_size=len(names),
        )

    async def GetServedModel(
        self, request: inference_pb2.GetServedModelRequest, context: Context
    ) -> inference_pb2.ServedModel:
        _require(request.name, "name")
        return self._reply(request.name)

    def _reply(self, name: str) -> inference_pb2.ServedModel:
        served = self._roster.present.get(name)
        if served is None:
            raise NotFound(
                Reason.REASON_SERVED_MODEL_NOT_FOUND,
                f"nothing is served as {name!r}; list the served models",
                name=name,
            )
        deployments = self._roster.deployments_of(served.key)
        return replies.served_model(served, deployments, on_demand=self._roster.may_leave(served.key))


@asynccontextmanager
async def _running(
    loaded: LoadedModel, request: Request, context: Context, *, is_streaming: bool
) -> AsyncIterator[list[Sequence]]:
    """The request's sequences in the engine; whoever leaves before their end takes them out of it."""
    loaded.engine.require_room()
    parameters_given = request.parameters
    prompt = await _beside(len(request.prompt), loaded.prompt, request)
    loaded.check(prompt, parameters_given)
    form = None
    if parameters_given.HasField("structured_output"):
        form = await loaded.forms.find(parameters_given.structured_output)
        form.check(parameters_given)
    remaining_s = context.time_remaining()
    sequences = [
        loaded.sequence(
            prompt,
            parameters_given,
            sampling,
            Outbox(is_streaming=is_streaming),
            form=form,
            priority=request.priority,
            deadline_s=None if remaining_s is None else perf_counter() + remaining_s,
        )
        for sampling in parameters.samplings(parameters_given, loaded.sampling_defaults)
    ]

    under_way = [(loaded.engine, sequence) for sequence in sequences]

    def leave(_: object = None) -> None:
        # Emptied, since gRPC's own state holds this in a cycle long after the call: it would keep the model with it.
        while under_way:
            engine, sequence = under_way.pop()
            if not sequence.is_over:
                engine.cancel(sequence)

    # gRPC drops the generator of a stream whose caller has left; only this is called at once.
    context.add_done_callback(leave)  # type: ignore[arg-type] # the stub errs
    try:
        for sequence in sequences:
            loaded.engine.submit(sequence)
        yield sequences
    finally:
        leave()


def _chosen(deliveries: list[Delivery], wanted: inference_pb2.GenerationParameters) -> list[Delivery]:
    """All of them, or the `n` whose tokens are the most probable on average, best first."""
    if wanted.best_of <= (wanted.n or 1):
        return deliveries
    deliveries = sorted(deliveries, key=lambda delivery: -scoring.mean_log_probability(delivery.scores))
    if not wanted.HasField("logprobs"):
        for delivery in deliveries:
            delivery.scores = []
    return deliveries[: wanted.n or 1]


def _echoed(loaded: LoadedModel, request: Request) -> str:
    """The prompt's text, if it is to stand in front of the completion."""
    if not request.parameters.echo:
        return ""
    return request.prompt or loaded.tokenizer.decode(request.prompt_token_ids)


def _require(value: Sized, field: str) -> None:
    if not len(value):
        raise InvalidArgument.field(field, "is empty; it is required", reason=Reason.REASON_MISSING_FIELD)


def _tokenized(loaded: LoadedModel, text: str, version: str) -> inference_pb2.TokenizeResponse:
    token_ids = loaded.encode(text, "text")
    tokenizer = loaded.tokenizer
    return inference_pb2.TokenizeResponse(
        token_ids=token_ids,
        tokens=[tokenizer.token(token_id) for token_id in token_ids],
        offsets=tokenizer.offsets(text),
        version=version,
        context_length=loaded.capacity,
    )


async def _beside(length: int, work: Callable[Given, Answer], *given: Given.args, **named: Given.kwargs) -> Answer:
    """What `work` returns: on the event loop for what is short, beside it for the rest."""
    if length <= INLINE_CHARACTERS:
        return work(*given, **named)
    return await asyncio.to_thread(work, *given, **named)
