"""The replies of octavo.v1.Inference, built from what the domain knows."""

from collections.abc import Iterator
from time import monotonic

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from octavo.formats.tokenizer import Tokenizer
from octavo.v1 import inference_pb2
from services.inference.engine import Engine
from services.inference.outbox import Delivery, Ending
from services.inference.scoring import TokenScore
from services.inference.sequence import Sequence
from services.inference.served_model import LoadedModel, ServedModel
from services.inference.tensor_model import TensorModel

PROMPT_TOKENS = 1024
"""Scores of a prompt in one message of a stream: 1 MB with 20 best tokens each."""


def response(
    sequences: list[Sequence], deliveries: list[Delivery], version: str, tokenizer: Tokenizer, echoed: str
) -> inference_pb2.GenerateResponse:
    """The whole answer of sequences that are over; `echoed` stands in front of each text."""
    endings = [delivery.ending for delivery in deliveries if delivery.ending]
    completions = [
        inference_pb2.Completion(
            index=index,
            text=echoed + delivery.text,
            token_ids=delivery.token_ids,
            finish_reason=ending.finish_reason,
            stop=ending.stop,
            logprobs=token_logprobs(delivery.scores, tokenizer),
        )
        for index, (delivery, ending) in enumerate(zip(deliveries, endings, strict=True))
    ]
    return inference_pb2.GenerateResponse(
        completions=completions,
        version=version,
        usage=_usage(sequences),
        timings=_timings(endings),
        seed=sequences[0].sampling.seed,
    )


def prompt(entries: list[inference_pb2.TokenLogprob]) -> Iterator[inference_pb2.StreamGenerateResponse]:
    """A prompt's scores, in messages of a size that every reader takes."""
    for start in range(0, len(entries), PROMPT_TOKENS):
        part = entries[start : start + PROMPT_TOKENS]
        yield inference_pb2.StreamGenerateResponse(prompt=inference_pb2.PromptLogprobs(tokens=part))


def chunk(index: int, delivery: Delivery, tokenizer: Tokenizer) -> inference_pb2.StreamGenerateResponse:
    """More text."""
    return inference_pb2.StreamGenerateResponse(
        chunk=inference_pb2.TextChunk(
            index=index,
            text=delivery.text,
            token_ids=delivery.token_ids,
            logprobs=token_logprobs(delivery.scores, tokenizer),
        )
    )


def done(sequences: list[Sequence], endings: list[Ending], version: str) -> inference_pb2.StreamGenerateResponse:
    """The end of a stream."""
    ends = [
        inference_pb2.CompletionEnd(index=index, finish_reason=ending.finish_reason, stop=ending.stop)
        for index, ending in enumerate(endings)
    ]
    return inference_pb2.StreamGenerateResponse(
        done=inference_pb2.GenerationDone(
            ends=ends,
            version=version,
            usage=_usage(sequences),
            timings=_timings(endings),
            seed=sequences[0].sampling.seed,
        )
    )


def token_logprobs(scores: list[TokenScore], tokenizer: Tokenizer) -> list[inference_pb2.TokenLogprob]:
    """Scores as the contract has them."""
    token = tokenizer.token
    return [
        inference_pb2.TokenLogprob(
            token_id=entry.token_id,
            token=token(entry.token_id),
            logprob=entry.log_probability,
            top_logprobs=[
                inference_pb2.TopLogprob(token_id=best, token=token(best), logprob=value) for best, value in entry.best
            ],
        )
        for entry in scores
    ]


def served_model(served: ServedModel, deployments: list[str], *, on_demand: bool) -> inference_pb2.ServedModel:
    """A served model as it is now."""
    reply = inference_pb2.ServedModel(
        name=served.key.name,
        version=served.key.version,
        deployments=deployments,
        precision=served.key.precision,
        device=served.loaded.device if isinstance(served.loaded, LoadedModel) else "cpu",
        state=served.state,
        failure=str(served.failure or served.obstacle or ""),
        on_demand=on_demand,
    )
    if footprint := served.footprint:
        reply.weights_size_bytes = footprint.weights_bytes
        is_out = served.state == inference_pb2.SERVED_MODEL_STATE_UNLOADED
        reply.memory_size_bytes = 0 if is_out else footprint.total_bytes
    if served.last_request_s is not None:
        reply.last_request_time.CopyFrom(_timestamp(served.last_request_s))
    if served.ready_s is not None:
        reply.ready_time.CopyFrom(_timestamp(served.ready_s))
        reply.load_duration.CopyFrom(_duration(served.load_s))
    match served.loaded:
        case LoadedModel() as loaded:
            _add_text(reply, loaded)
            _add_work(reply, served, loaded.engine)
        case TensorModel() as loaded:
            reply.waiting_count = loaded.batcher.waiting_count
            reply.waiting_limit = loaded.policy.waiting_limit
            reply.failed_request_count = sum(loaded.meter.failed_s.counts)
            reply.request_count = sum(loaded.meter.request_s.counts) + reply.failed_request_count
    return reply


def _add_text(reply: inference_pb2.ServedModel, loaded: LoadedModel) -> None:
    scheduler = loaded.engine.scheduler
    reply.family = loaded.architecture.family
    reply.context_length = loaded.capacity
    reply.vocabulary_size = loaded.architecture.vocab_size
    reply.parameter_count = loaded.architecture.parameters
    reply.layer_count = loaded.architecture.layers
    reply.slot_count = scheduler.slots
    reply.running_count = scheduler.running_count
    reply.waiting_count = scheduler.waiting_count
    reply.waiting_limit = scheduler.waiting_limit
    reply.cache_size_bytes = loaded.cache_size_bytes
    reply.conformance_count = loaded.conformance_count


def _add_work(reply: inference_pb2.ServedModel, served: ServedModel, engine: Engine) -> None:
    """What an engine has done since it was loaded, and how fast it has been lately."""
    meter, now_s = engine.meter, monotonic()
    succeeded, failed = sum(meter.total_s.counts), sum(meter.failed_s.counts)
    reply.request_count = succeeded + failed
    reply.failed_request_count = failed
    reply.prompt_token_count = meter.prompt_tokens
    reply.cached_token_count = meter.cached_tokens
    reply.completion_token_count = meter.completion_tokens
    rates = served.pace.per_second(now_s, meter.prompt_tokens, meter.completion_tokens)
    reply.prompt_tokens_per_second, reply.completion_tokens_per_second = rates
    if (longest_s := engine.scheduler.longest_wait_s()) is not None:
        reply.longest_wait_duration.CopyFrom(_duration(longest_s))


def _usage(sequences: list[Sequence]) -> inference_pb2.Usage:
    """Tokens of the prompt, which all completions share, and of the completions together."""
    return inference_pb2.Usage(
        prompt_tokens=len(sequences[0].prompt),
        cached_tokens=sequences[0].reused,
        completion_tokens=sum(len(sequence.token_ids) for sequence in sequences),
    )


def _timings(endings: list[Ending]) -> inference_pb2.Timings:
    """From the first arrival to the last end."""
    arrival_s = min(ending.arrival_s for ending in endings)
    start_s = min(ending.start_s for ending in endings)
    first_token_s = min(ending.first_token_s for ending in endings)
    end_s = max(ending.end_s for ending in endings)
    return inference_pb2.Timings(
        queue_duration=_duration(start_s - arrival_s),
        prefill_duration=_duration(first_token_s - start_s),
        decode_duration=_duration(end_s - first_token_s),
        first_token_duration=_duration(first_token_s - arrival_s),
        total_duration=_duration(end_s - arrival_s),
    )


def _timestamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
