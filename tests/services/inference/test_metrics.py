import asyncio
from types import SimpleNamespace

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from octavo.v1.inference_pb2 import FinishReason, GenerateRequest, GenerationParameters
from services.inference import metrics
from services.inference.meter import Distribution
from services.inference.sampler import Sampling


def samples(process):
    text = generate_latest(process.collector).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


LABELS = (("precision", "fp32"), ("version", "models/poet/versions/1"))


async def test_what_was_generated_is_counted(suite, bundles):
    await suite.deploy(await suite.publish(bundles()))
    request = GenerateRequest(
        model="deployments/poet",
        prompt="TO BE",
        parameters=GenerationParameters(max_tokens=10, seed=1, ignore_eos=True),
    )
    await asyncio.gather(*(suite.inference.Generate(request) for _ in range(3)))
    seen = samples(suite.metrics)
    assert seen["octavo_inference_completion_tokens_total", *LABELS] == 30
    assert seen["octavo_inference_prompt_tokens_total", *LABELS] == 15
    assert seen["octavo_inference_requests_total", ("outcome", "max_tokens"), *LABELS] == 3
    assert seen["octavo_inference_time_to_first_token_seconds_count", *LABELS] == 3
    assert seen["octavo_inference_inter_token_latency_seconds_sum", *LABELS] > 0
    assert seen["octavo_inference_sequences_running", *LABELS] == 0
    assert seen["octavo_inference_slots", *LABELS] == 4
    assert seen["octavo_inference_memory_bytes", *LABELS] > 4 << 20


@pytest.mark.parametrize(("value", "place"), [(0.5, 0), (1.0, 0), (1.5, 1), (3.0, 2)])
def test_a_value_is_counted_below_its_bound(value, place):
    distribution = Distribution((1.0, 2.0))
    distribution.add(value, times=4)
    assert distribution.counts[place] == 4
    assert distribution.total == 4 * value


def test_a_recorded_span_tells_what_was_generated_in_the_words_of_the_conventions():
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    sequence = SimpleNamespace(
        sampling=Sampling(seed=1, top_k=4),
        token_limit=9,
        prompt=[1, 2],
        token_ids=[1] * 5,
        finish_reason=FinishReason.FINISH_REASON_STOP_TEXT,
    )
    with provider.get_tracer("test").start_as_current_span("call"):
        metrics.describe("models/poet/versions/1", "deployments/poet", [sequence])
    (span,) = exporter.get_finished_spans()
    assert span.attributes["gen_ai.response.model"] == "models/poet/versions/1"
    assert span.attributes["gen_ai.usage.output_tokens"] == 5
    assert span.attributes["gen_ai.response.finish_reasons"] == ("stop_text",)
    assert not trace.get_current_span().is_recording()
    provider.shutdown()
