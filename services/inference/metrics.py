"""What the server tells about generation: Prometheus metrics read from the meters, GenAI attributes on the span.

The GenAI names are OpenTelemetry's, still in development (https://opentelemetry.io/docs/specs/semconv/gen-ai/); they
stand in this module alone.
"""

from collections.abc import Callable, Iterable, Iterator

from opentelemetry import trace
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.v1.inference_pb2 import FinishReason
from services.inference.meter import Distribution, Meter
from services.inference.roster import Roster
from services.inference.scheduler import Scheduler
from services.inference.sequence import Sequence
from services.inference.served_model import LoadedModel

LABELS = ("version", "precision")

_GAUGES: tuple[tuple[str, str, Callable[[Scheduler], int]], ...] = (
    ("octavo_inference_sequences_running", "Sequences that hold a slot.", lambda s: s.running_count),
    ("octavo_inference_sequences_waiting", "Sequences that wait for a slot.", lambda s: s.waiting_count),
    ("octavo_inference_slots", "Sequences that can run at the same time.", lambda s: s.slots),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Meter], int]], ...] = (
    ("octavo_inference_prompt_tokens", "Tokens of prompts that were read.", lambda m: m.prompt_tokens),
    (
        "octavo_inference_cached_tokens",
        "Tokens of prompts that were in the cache already.",
        lambda m: m.cached_tokens,
    ),
    ("octavo_inference_completion_tokens", "Tokens that were generated.", lambda m: m.completion_tokens),
    ("octavo_inference_steps", "Decode steps, of all rows together.", lambda m: m.steps),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[Meter], Distribution]], ...] = (
    (
        "octavo_inference_time_to_first_token_seconds",
        "From arrival to the first token.",
        lambda m: m.first_token_s,
    ),
    ("octavo_inference_inter_token_latency_seconds", "Between two tokens of a sequence.", lambda m: m.inter_token_s),
    ("octavo_inference_queue_seconds", "From arrival to a slot.", lambda m: m.queue_s),
    ("octavo_inference_request_seconds", "From arrival to the end, of what succeeded.", lambda m: m.total_s),
)


class InferenceCollector(Collector):
    """Shows the meters of all served models; counting itself costs the engines nothing but additions."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now. May be called from any thread."""
        engines = [
            ((served.key.version, served.key.name.rpartition(".")[2]), loaded.engine)
            for served in list(self._roster.models.values())
            if isinstance(loaded := served.loaded, LoadedModel)
        ]
        yield self._memory()
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            for labels, engine in engines:
                gauge.add_metric(labels, read(engine.scheduler))
            yield gauge
        meters = [(labels, engine.meter) for labels, engine in engines]
        for name, text, count in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=LABELS)
            for labels, meter in meters:
                counter.add_metric(labels, count(meter))
            yield counter
        yield _outcomes(meters)
        for name, text, distribution in _HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=LABELS)
            for labels, meter in meters:
                seen = distribution(meter)
                histogram.add_metric(labels, list(seen.cumulated()), seen.total)
            yield histogram

    def _memory(self) -> GaugeMetricFamily:
        text = "Memory of the server's budget that is kept for a model in memory, in bytes."
        gauge = GaugeMetricFamily("octavo_inference_memory_bytes", text, labels=LABELS)
        for served in list(self._roster.models.values()):
            if served.loaded and (footprint := served.footprint):
                gauge.add_metric((served.key.version, served.key.name.rpartition(".")[2]), footprint.total_bytes)
        return gauge


def describe(version: str, asked: str, sequences: list[Sequence]) -> None:
    """Says on the present span what was generated, if somebody records it."""
    span = trace.get_current_span()
    if span.is_recording():
        sampling = sequences[0].sampling
        reasons = [FinishReason.Name(sequence.finish_reason) for sequence in sequences]
        span.set_attributes(
            {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.provider.name": "octavo",
                "gen_ai.request.model": asked,
                "gen_ai.response.model": version,
                "gen_ai.request.temperature": sampling.temperature,
                "gen_ai.request.top_p": sampling.top_p,
                "gen_ai.request.top_k": sampling.top_k,
                "gen_ai.request.max_tokens": sequences[0].token_limit,
                "gen_ai.usage.input_tokens": len(sequences[0].prompt),
                "gen_ai.usage.output_tokens": sum(len(sequence.token_ids) for sequence in sequences),
                "gen_ai.response.finish_reasons": [name.removeprefix("FINISH_REASON_").lower() for name in reasons],
            }
        )


def _outcomes(meters: Iterable[tuple[tuple[str, str], Meter]]) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "octavo_inference_requests", "Requests that are over, by what became of them.", labels=(*LABELS, "outcome")
    )
    for labels, meter in meters:
        for outcome, count in dict(meter.outcomes).items():
            family.add_metric((*labels, outcome), count)
    return family
