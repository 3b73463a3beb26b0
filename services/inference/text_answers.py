"""Score and Embed, answered: requests checked, texts read one by one beside the event loop, replies built."""

import asyncio
import math

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
    response = ScoreResponse(version=version, usage=Usage(prompt_tokens=sum(len(a) + len(b) for a, b in pairs)))
    for context, continuation in pairs:
        scores, is_greedy = await asyncio.to_thread(
            scoring.score, loaded.score_session, context, continuation, request.top_logprobs
        )
        response.scores.append(_text_score(loaded, scores, is_greedy=is_greedy))
    return response


async def prompt_logprobs(
    loaded: LoadedModel, prompt: NDArray[np.int64], parameters: GenerationParameters
) -> list[TokenLogprob]:
    """The scores of a prompt's own tokens."""
    top = parameters.prompt_logprobs
    scores, _ = await asyncio.to_thread(scoring.score, loaded.score_session, [], prompt.tolist(), top)
    return replies.token_logprobs(scores, loaded.tokenizer)


async def embed(loaded: LoadedModel, request: EmbedRequest, version: str) -> EmbedResponse:
    """Raises InvalidArgument naming the input that is wrong; nothing is computed then."""
    _check_count(len(request.inputs))
    width = loaded.architecture.width
    dimensions = request.dimensions if request.HasField("dimensions") else width
    if not 1 <= dimensions <= width:
        raise InvalidArgument.field("dimensions", f"{dimensions} is not between 1 and the model's {width}")
    texts = await asyncio.to_thread(_texts, loaded, request)
    response = EmbedResponse(version=version, usage=Usage(prompt_tokens=sum(map(len, texts))))
    for token_ids in texts:
        values = await asyncio.to_thread(
            scoring.embed,
            loaded.score_session,
            token_ids,
            takes_last=request.pooling == Pooling.POOLING_LAST,
            dimensions=dimensions,
            normalize=request.normalize if request.HasField("normalize") else True,
        )
        response.embeddings.append(Embedding(values=values))
    return response


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


def _text_score(loaded: LoadedModel, scores: list[scoring.TokenScore], *, is_greedy: bool) -> TextScore:
    known = [entry.log_probability for entry in scores if entry.log_probability is not None]
    total = math.fsum(known)
    return TextScore(
        tokens=replies.token_logprobs(scores, loaded.tokenizer),
        total_logprob=total,
        perplexity=math.exp(-total / len(known)) if known else 1.0,
        is_greedy=is_greedy,
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
