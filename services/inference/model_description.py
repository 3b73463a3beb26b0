"""What the Open Inference Protocol tells of a served model: its tensors, its configuration, its statistics.

Builds answers from what is served; knows nothing of calls.
"""

from collections.abc import Iterable

from octavo.open_inference import model_config_pb2, open_inference_pb2
from octavo.v1 import inference_pb2
from services.inference import text_tensors
from services.inference.call_terms import PRIORITY_LEVELS, USUAL_LEVEL
from services.inference.datatypes import BY_NAME, Datatype
from services.inference.meter import Distribution, Meter
from services.inference.roster import Roster
from services.inference.served_model import LoadedModel, ServedModel
from services.inference.tensor_meter import TensorMeter
from services.inference.tensor_model import TensorModel

PLATFORM = "onnxruntime_onnx"
BACKEND = "octavo"
STATES = {
    inference_pb2.SERVED_MODEL_STATE_DOWNLOADING: "LOADING",
    inference_pb2.SERVED_MODEL_STATE_VERIFYING: "LOADING",
    inference_pb2.SERVED_MODEL_STATE_READY: "READY",
    inference_pb2.SERVED_MODEL_STATE_DRAINING: "UNLOADING",
    inference_pb2.SERVED_MODEL_STATE_FAILED: "UNAVAILABLE",
    inference_pb2.SERVED_MODEL_STATE_WAITING: "LOADING",
    # It answers, after it has come back into memory; the protocol has no word of its own for that.
    inference_pb2.SERVED_MODEL_STATE_UNLOADED: "READY",
}

Shape = list[int]
Tensors = list[tuple[str, Datatype, Shape]]
TensorMetadata = open_inference_pb2.ModelMetadataResponse.TensorMetadata
ModelIndex = open_inference_pb2.RepositoryIndexResponse.ModelIndex
Statistics = open_inference_pb2.ModelStatistics


def metadata(
    name: str, served: ServedModel, siblings: Iterable[ServedModel]
) -> open_inference_pb2.ModelMetadataResponse:
    """What a model takes and gives, and which of its versions are served."""
    inputs, outputs = _tensors(served)
    return open_inference_pb2.ModelMetadataResponse(
        name=name,
        versions=sorted({str(other.key.number) for other in siblings if other.is_available}, key=int),
        platform=PLATFORM,
        inputs=[TensorMetadata(name=name, datatype=datatype.name, shape=shape) for name, datatype, shape in inputs],
        outputs=[TensorMetadata(name=name, datatype=datatype.name, shape=shape) for name, datatype, shape in outputs],
        properties={"version": served.key.version},
    )


def config(name: str, served: ServedModel) -> model_config_pb2.ModelConfig:
    """How a model is served, in the protocol's words."""
    loaded = served.loaded
    is_tensors = isinstance(loaded, TensorModel)
    rows = loaded.policy.rows if isinstance(loaded, TensorModel) else 0
    inputs, outputs = _tensors(served)
    start = 1 if rows else 0
    reply = model_config_pb2.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=rows,
        version_policy=model_config_pb2.ModelVersionPolicy(
            specific=model_config_pb2.ModelVersionPolicy.Specific(versions=[served.key.number])
        ),
        instance_group=[
            model_config_pb2.ModelInstanceGroup(
                name=f"{name}_0", kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1
            )
        ],
        default_model_filename="model.onnx",
        dynamic_batching=_batching(loaded),
        model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=not is_tensors),
    )
    for tensor, datatype, shape in inputs:
        reply.input.add(name=tensor, data_type=datatype.config, dims=shape[start:])
    for tensor, datatype, shape in outputs:
        reply.output.add(name=tensor, data_type=datatype.config, dims=shape[start:])
    return reply


def index(models: Iterable[ServedModel], roster: Roster) -> list[ModelIndex]:
    """One line for each name and version that served models answer to, READY where any of its precisions is."""
    lines: dict[tuple[str, int], ModelIndex] = {}
    for served in models:
        for name in names(served, roster):
            state, place = STATES[served.state], (name, served.key.number)
            if place not in lines or lines[place].state != "READY":
                lines[place] = ModelIndex(
                    name=name, version=str(served.key.number), state=state, reason=str(served.failure or "")
                )
    return [lines[place] for place in sorted(lines)]


def names(served: ServedModel, roster: Roster) -> list[str]:
    """What the protocol's clients may call a served model: its model, and the deployments that ask for it."""
    deployments = (name.removeprefix("deployments/") for name in roster.deployments_of(served.key))
    return sorted({served.key.model.removeprefix("models/"), *deployments})


def statistics(name: str, served: ServedModel) -> Statistics:
    """Counts and times since the model was loaded."""
    reply = Statistics(name=name, version=str(served.key.number))
    match served.loaded:
        case LoadedModel() as loaded:
            _add_text_statistics(reply, loaded.engine.meter)
        case TensorModel() as loaded:
            _add_tensor_statistics(reply, loaded.meter)
    if served.loaded and (footprint := served.footprint):
        reply.memory_usage.add(type="CPU", id=0, byte_size=footprint.total_bytes)
    return reply


def _tensors(served: ServedModel) -> tuple[Tensors, Tensors]:
    """Names, types and shapes of inputs and of outputs."""
    if isinstance(loaded := served.loaded, TensorModel):
        session = loaded.session
        return (
            [(spec.name, spec.datatype, spec.shape) for spec in session.inputs],
            [(spec.name, spec.datatype, spec.shape) for spec in session.outputs],
        )
    text = BY_NAME["BYTES"]
    return [(text_tensors.INPUT, text, [1])], [(text_tensors.OUTPUT, text, [1])]


def _batching(loaded: LoadedModel | TensorModel | None) -> model_config_pb2.ModelDynamicBatching:
    """The queue: bounded, by priority. Text joins and leaves a running batch at every token, without any delay."""
    batching = model_config_pb2.ModelDynamicBatching(
        priority_levels=PRIORITY_LEVELS,
        default_priority_level=USUAL_LEVEL,
        default_queue_policy=model_config_pb2.ModelQueuePolicy(allow_timeout_override=True),
    )
    if isinstance(loaded, TensorModel):
        batching.preferred_batch_size.extend(loaded.policy.preferred)
        batching.max_queue_delay_microseconds = loaded.policy.delay_us
        batching.default_queue_policy.max_queue_size = loaded.policy.waiting_limit
    elif loaded:
        batching.default_queue_policy.max_queue_size = loaded.engine.scheduler.waiting_limit
    return batching


def _add_text_statistics(reply: Statistics, meter: Meter) -> None:
    """A text is queued, then computed: prompts and tokens share runs, so that nothing is put together or split."""
    succeeded = sum(meter.total_s.counts)
    reply.last_inference = int(meter.last_s * 1e3)
    reply.inference_count = succeeded
    reply.execution_count = meter.steps
    stats = reply.inference_stats
    _add_outcomes(stats, meter.total_s, meter.failed_s)
    _set(stats.queue, succeeded, meter.queue_s.total)
    _set(stats.compute_input, succeeded, 0.0)
    _set(stats.compute_infer, succeeded, max(0.0, meter.total_s.total - meter.queue_s.total))
    _set(stats.compute_output, succeeded, 0.0)


def _add_tensor_statistics(reply: Statistics, meter: TensorMeter) -> None:
    succeeded = sum(meter.request_s.counts)
    reply.last_inference = int(meter.last_s * 1e3)
    reply.inference_count = meter.rows
    reply.execution_count = meter.execution_count
    stats = reply.inference_stats
    _add_outcomes(stats, meter.request_s, meter.failed_s)
    _set(stats.queue, succeeded, meter.queue_s.total)
    _set(stats.compute_input, succeeded, meter.input_s)
    _set(stats.compute_infer, succeeded, meter.infer_s)
    _set(stats.compute_output, succeeded, meter.output_s)
    for rows, runs in sorted(meter.runs.copy().items()):
        batch = reply.batch_stats.add(batch_size=rows)
        _set(batch.compute_input, runs.count, runs.input_s)
        _set(batch.compute_infer, runs.count, runs.infer_s)
        _set(batch.compute_output, runs.count, runs.output_s)


def _add_outcomes(stats: open_inference_pb2.InferStatistics, succeeded: Distribution, failed: Distribution) -> None:
    _set(stats.success, sum(succeeded.counts), succeeded.total)
    _set(stats.fail, sum(failed.counts), failed.total)


def _set(duration: open_inference_pb2.StatisticDuration, count: int, seconds: float) -> None:
    duration.count, duration.ns = count, int(seconds * 1e9)
