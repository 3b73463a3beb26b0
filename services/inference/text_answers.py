"""Score and Embed, answered: requests checked, texts read in groups beside the event loop, replies built."""

import asyncio
import math
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from octavo.errors import InvalidArgument
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import (
    Embedding,
    EmbedRequest,
    EmbedResponse,
    GenerationParameters,
    Pooling,
    ScoreRequest,
    ScoreResponse,
    ScoreTotal,
    TextInput,
    TextScore,
    TokenLogprob,
    Usage,
)
from services.inference import replies, scoring
from services.inference.served_model import LoadedModel

INPUT_LIMIT = 256
TOP_LIMIT = 20


async def score(loaded: LoadedModel, request: ScoreRequest, version: str) -> ScoreResponse:
    """Raises InvalidArgument naming the input that is wrong; nothing is computed then."""
    _check_count(len(request.inputs))
    if not 0 <= request.top_logprobs <= TOP_LIMIT:
        raise InvalidArgument.field("top_logprobs", f"{request.top_logprobs} is not between 0 and {TOP_LIMIT}")
    # Megabytes of text take seconds to become tokens, during which every stream of this server would stand still.
    pairs = await asyncio.to_thread(_pairs, loaded, request)
    found = await _scored(loaded, pairs, request.top_logprobs)
    # So do hundreds of thousands of scores to become messages.
    response = await asyncio.to_thread(_response, loaded, found)
    response.version = version
    response.usage.prompt_tokens = sum(len(context) + len(continuation) for context, continuation in pairs)
    return response


async def prompt_logprobs(
    loaded: LoadedModel, prompt: NDArray[np.int64], parameters: GenerationParameters
) -> list[TokenLogprob]:
    """The scores of a prompt's own tokens."""
    (found,) = await _scored(loaded, [([], prompt.tolist())], parameters.prompt_logprobs)
    return await asyncio.to_thread(replies.token_logprobs, found.tokens, loaded.tokenizer)


async def embed(loaded: LoadedModel, request: EmbedRequest, version: str) -> EmbedResponse:
    """Raises InvalidArgument naming the input that is wrong; nothing is computed then."""
    _check_count(len(request.inputs))
    width = loaded.architecture.width
    dimensions = request.dimensions if request.HasField("dimensions") else width
    if not 1 <= dimensions <= width:
        raise InvalidArgument.field("dimensions", f"{dimensions} is not between 1 and the model's {width}")
    texts = await asyncio.to_thread(_texts, loaded, request)
    session, embeddings = loaded.score_session, [Embedding()] * len(texts)
    for group in session.groups([len(text) for text in texts]):
        task = partial(scoring.embed, session, [texts[number] for number in group])
        vectors = await session.work(partial(task, takes_last=request.pooling == Pooling.POOLING_LAST))
        normalize = request.normalize if request.HasField("normalize") else True
        for number, vector in zip(group, vectors, strict=True):
            embeddings[number] = Embedding(values=scoring.scaled(vector, dimensions=dimensions, normalize=normalize))
    usage = Usage(prompt_tokens=sum(map(len, texts)))
    return EmbedResponse(version=version, usage=usage, embeddings=embeddings)


async def _scored(loaded: LoadedModel, pairs: list[tuple[list[int], list[int]]], top: int) -> list[scoring.Score]:
    """The scores of all pairs, group by group: who leaves meanwhile stops at the next run."""
    session = loaded.score_session
    found = [scoring.Score([])] * len(pairs)
    # The last token of a text is not read: nothing follows it.
    for group in session.groups([len(context) + len(continuation) - 1 for context, continuation in pairs]):
        task = partial(scoring.score, session, [pairs[number] for number in group], top)
        for number, its in zip(group, await session.work(task), strict=True):
            found[number] = its
    return found


@dataclass(frozen=True, slots=True)
class _Sum:
    """Of tokens that have a log-probability: how improbable they are in nats, how many, and how much text."""

    nats: float
    tokens: int
    size_bytes: int

    @classmethod
    def of(cls, loaded: LoadedModel, found: scoring.Score) -> Self:
        known = [entry for entry in found.tokens if entry.log_probability is not None]
        nats = math.fsum(entry.log_probability or 0 for entry in known)
        return cls(nats, len(known), loaded.tokenizer.size_bytes([entry.token_id for entry in known]))

    @classmethod
    def of_all(cls, sums: list[Self]) -> Self:
        nats = math.fsum(entry.nats for entry in sums)
        return cls(nats, sum(entry.tokens for entry in sums), sum(entry.size_bytes for entry in sums))

    @property
    def perplexity(self) -> float:
        # Beyond e^700 a double overflows; such a model has diverged, whatever the digits.
        return math.exp(min(-self.nats / self.tokens, 700.0)) if self.tokens else 1.0

    @property
    def bits_per_byte(self) -> float:
        return -self.nats / math.log(2) / self.size_bytes if self.size_bytes else 0.0


def _pairs(loaded: LoadedModel, request: ScoreRequest) -> list[tuple[list[int], list[int]]]:
    """Context and continuation of each input, as tokens."""
    pairs = []
    for index, given in enumerate(request.inputs):
        field = f"inputs[{index}]"
        context = _token_ids(loaded, given.context, f"{field}.context") if given.context.WhichOneof("content") else []
        continuation = _required(loaded, given.continuation, f"{field}.continuation")
        _check_length(loaded, len(context) + len(continuation), field)
        pairs.append((context, continuation))
    return pairs


def _texts(loaded: LoadedModel, request: EmbedRequest) -> list[list[int]]:
    """Each input as tokens."""
    texts = []
    for index, given in enumerate(request.inputs):
        texts.append(_required(loaded, given, f"inputs[{index}]"))
        _check_length(loaded, len(texts[-1]), f"inputs[{index}]")
    return texts


def _response(loaded: LoadedModel, found: list[scoring.Score]) -> ScoreResponse:
    sums = [_Sum.of(loaded, entry) for entry in found]
    total = _Sum.of_all(sums)
    return ScoreResponse(
        scores=[_text_score(loaded, entry, its) for entry, its in zip(found, sums, strict=True)],
        total=ScoreTotal(
            total_logprob=total.nats,
            token_count=total.tokens,
            size_bytes=total.size_bytes,
            perplexity=total.perplexity,
            bits_per_byte=total.bits_per_byte,
        ),
    )


def _text_score(loaded: LoadedModel, found: scoring.Score, its: _Sum) -> TextScore:
    return TextScore(
        tokens=replies.token_logprobs(found.tokens, loaded.tokenizer),
        total_logprob=its.nats,
        perplexity=its.perplexity,
        is_greedy=found.is_greedy,
        bits_per_byte=its.bits_per_byte,
    )


def _required(loaded: LoadedModel, given: TextInput, field: str) -> list[int]:
    token_ids = _token_ids(loaded, given, field)
    if not token_ids:
        raise InvalidArgument.field(
            field, "empty; send at least one character or token", reason=Reason.REASON_MISSING_FIELD
        )
    return token_ids


def _token_ids(loaded: LoadedModel, given: TextInput, field: str) -> list[int]:
    if given.WhichOneof("content") != "tokens":
        return loaded.encode(given.text, f"{field}.text")
    loaded.check_ids(np.array(given.tokens.token_ids, np.int64), f"{field}.tokens.token_ids")
    return list(given.tokens.token_ids)


def _check_count(count: int) -> None:
    if not 1 <= count <= INPUT_LIMIT:
        raise InvalidArgument.field("inputs", f"{count} texts; send 1 to {INPUT_LIMIT}")


def _check_length(loaded: LoadedModel, length: int, field: str) -> None:
    if length > loaded.capacity:
        raise InvalidArgument.field(
            field,
            f"{length} tokens do not fit into the context of {loaded.capacity}",
            reason=Reason.REASON_PROMPT_TOO_LONG,
            prompt_tokens=length,
            context_length=loaded.capacity,
        )
