"""The replies of octavo.v1.Inference, built from what the domain knows."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from octavo.v1 import inference_pb2
from services.inference.outbox import Delivery, Ending
from services.inference.sequence import Sequence
from services.inference.served_model import ServedModel


def response(sequence: Sequence, delivery: Delivery, ending: Ending, version: str) -> inference_pb2.GenerateResponse:
    """The whole answer of a sequence that is over."""
    completion = inference_pb2.Completion(
        text=delivery.text, token_ids=delivery.token_ids, finish_reason=ending.finish_reason, stop=ending.stop
    )
    return inference_pb2.GenerateResponse(
        completions=[completion],
        version=version,
        usage=_usage(sequence, ending),
        timings=_timings(ending),
        seed=sequence.sampling.seed,
    )


def chunk(delivery: Delivery) -> inference_pb2.StreamGenerateResponse:
    """More text."""
    return inference_pb2.StreamGenerateResponse(
        chunk=inference_pb2.TextChunk(text=delivery.text, token_ids=delivery.token_ids)
    )


def done(sequence: Sequence, ending: Ending, version: str) -> inference_pb2.StreamGenerateResponse:
    """The end of a stream."""
    return inference_pb2.StreamGenerateResponse(
        done=inference_pb2.GenerationDone(
            ends=[inference_pb2.CompletionEnd(finish_reason=ending.finish_reason, stop=ending.stop)],
            version=version,
            usage=_usage(sequence, ending),
            timings=_timings(ending),
            seed=sequence.sampling.seed,
        )
    )


def served_model(served: ServedModel, deployments: list[str]) -> inference_pb2.ServedModel:
    """A served model as it is now."""
    reply = inference_pb2.ServedModel(
        name=served.key.name,
        version=served.key.version,
        deployments=deployments,
        precision=served.key.precision,
        device="cpu",
        state=served.state,
        failure=str(served.failure or ""),
    )
    if served.ready_s is not None:
        reply.ready_time.CopyFrom(Timestamp(seconds=int(served.ready_s), nanos=int(served.ready_s % 1 * 1e9)))
        reply.load_duration.CopyFrom(_duration(served.load_s))
    if loaded := served.loaded:
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
    return reply


def _usage(sequence: Sequence, ending: Ending) -> inference_pb2.Usage:
    return inference_pb2.Usage(prompt_tokens=len(sequence.prompt), completion_tokens=ending.token_count)


def _timings(ending: Ending) -> inference_pb2.Timings:
    return inference_pb2.Timings(
        queue_duration=_duration(ending.start_s - ending.arrival_s),
        prefill_duration=_duration(ending.first_token_s - ending.start_s),
        decode_duration=_duration(ending.end_s - ending.first_token_s),
        first_token_duration=_duration(ending.first_token_s - ending.arrival_s),
        total_duration=_duration(ending.end_s - ending.arrival_s),
    )


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
