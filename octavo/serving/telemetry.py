"""What a program tells about itself: spans, metrics and log lines. A value, one for each service, never global.

Names follow the OpenTelemetry conventions for RPC (https://opentelemetry.io/docs/specs/semconv/rpc/); they stand in
this module alone, since they still move.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from octavo.serving.settings import ProgramSettings

# gRPC's own bounds (proposal A66), every second one: fine below 5 ms, where our calls are.
DURATION_BUCKETS_S = (
    0.0001, 0.0003, 0.0008, 0.002, 0.004, 0.006, 0.01, 0.016, 0.025, 0.04, 0.065,
    0.1, 0.16, 0.25, 0.4, 0.65, 1, 2, 5, 10, 20, 50, 100,
)  # fmt: skip


class RpcMetrics:
    """Rate, errors and duration of every call, once for each process."""

    def __init__(self, collector: CollectorRegistry) -> None:
        labels = ("rpc_method", "rpc_status_code")
        self.duration = Histogram(
            "octavo_rpc_server_call_duration_seconds",
            "How long calls took, by method and status.",
            labels,
            buckets=DURATION_BUCKETS_S,
            registry=collector,
        )
        self.running = Gauge(
            "octavo_rpc_server_calls_running", "Calls under way, by method.", labels[:1], registry=collector
        )
        self.messages = Counter(
            "octavo_rpc_server_messages_sent",
            "Messages sent on streams, by method.",
            labels[:1],
            registry=collector,
        )


class ProcessMetrics:
    """The metrics of a process: one collector, one set of call metrics, however many services it hosts."""

    def __init__(self) -> None:
        self.collector = CollectorRegistry()
        self.rpc = RpcMetrics(self.collector)


@dataclass(frozen=True)
class Telemetry:
    """One service's tracer and log, and the metrics of the process it runs in."""

    name: str
    provider: TracerProvider
    process: ProcessMetrics
    is_tracing: bool

    @classmethod
    def create(cls, name: str, process: ProcessMetrics, processors: Sequence[SpanProcessor] = ()) -> "Telemetry":
        """Telemetry that hands its spans to `processors`, all of them: what tests use."""
        provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
        for processor in processors:
            provider.add_span_processor(processor)
        return cls(name, provider, process, bool(processors))

    @classmethod
    def from_settings(cls, name: str, process: ProcessMetrics, settings: ProgramSettings) -> "Telemetry":
        """Telemetry that exports as the settings say."""
        if not settings.otlp_endpoint:
            return cls.create(name, process)
        # Imported where it is asked for: a laptop that exports nothing does not pay for it at start-up.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        sampler = ParentBased(TraceIdRatioBased(settings.trace_ratio))
        resource = Resource.create({"service.name": name})
        provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otlp_endpoint)))
        return cls(name, provider, process, is_tracing=True)

    @property
    def tracer(self) -> trace.Tracer:
        """Makes this service's spans."""
        return self.provider.get_tracer("octavo")

    @property
    def logger(self) -> logging.Logger:
        """Writes this service's log; facts go beside the sentence: `logger.info("loaded", extra={"slots": 8})`."""
        return logging.getLogger(f"octavo.{self.name}")

    @property
    def collector(self) -> CollectorRegistry:
        """Where this service's own metrics are registered, named `octavo_<service>_…`."""
        return self.process.collector

    def close(self) -> None:
        """Sends what has not been sent."""
        self.provider.shutdown()


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the facts that were logged beside the sentence."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line for people: time, program, sentence, facts."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        facts = " ".join(f"{key}={value}" for key, value in _facts(record).items())
        program = record.name.removeprefix("octavo.")
        level = "" if record.levelno == logging.INFO else f" {record.levelname}"
        line = f"{clock} {program:<9}{level} {record.getMessage()} {facts}".rstrip()
        # What callers sent may be in it, such as a path: its line breaks and colours are not ours.
        line = _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), line)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _facts(record: logging.LogRecord) -> dict[str, object]:
    facts = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    span = trace.get_current_span().get_span_context()
    return facts | {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"} if span.is_valid else facts


def configure_logging(log_format: str, level: int = logging.INFO) -> None:
    """Sends the log lines of the suite to standard error. Called by programs, never by the library."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logger = logging.getLogger("octavo")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
