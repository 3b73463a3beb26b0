"""What the server tells about models of tensors: Prometheus metrics, read from their meters when somebody asks."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.inference.meter import Distribution
from services.inference.metrics import LABELS
from services.inference.roster import Roster
from services.inference.tensor_meter import TensorMeter
from services.inference.tensor_model import TensorModel

_GAUGES: tuple[tuple[str, str, Callable[[TensorModel], int]], ...] = (
    (
        "octavo_inference_tensor_waiting",
        "Requests for tensors that wait to run.",
        lambda m: m.batcher.waiting_count,
    ),
    ("octavo_inference_tensor_batch_limit", "Most rows of one run; 0 without batches.", lambda m: m.policy.rows),
)
_COUNTERS: tuple[tuple[str, str, Callable[[TensorMeter], int]], ...] = (
    ("octavo_inference_tensor_rows", "Rows of tensors that were answered.", lambda m: m.rows),
    ("octavo_inference_tensor_runs", "Runs of graphs of tensors.", lambda m: m.execution_count),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[TensorMeter], Distribution]], ...] = (
    ("octavo_inference_tensor_batch_rows", "Rows of a run.", lambda m: m.batch_rows),
    ("octavo_inference_tensor_run_seconds", "Running the graph.", lambda m: m.run_s),
    ("octavo_inference_tensor_queue_seconds", "From arrival to the run, of what succeeded.", lambda m: m.queue_s),
    ("octavo_inference_tensor_request_seconds", "From arrival to the end, of what succeeded.", lambda m: m.request_s),
)


class TensorCollector(Collector):
    """Shows the meters of all served models of tensors."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now. May be called from any thread."""
        models = [
            ((served.key.version, served.key.name.rpartition(".")[2]), loaded)
            for served in list(self._roster.models.values())
            if isinstance(loaded := served.loaded, TensorModel)
        ]
        for name, text, read in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            for labels, model in models:
                gauge.add_metric(labels, read(model))
            yield gauge
        for name, text, count in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=LABELS)
            for labels, model in models:
                counter.add_metric(labels, count(model.meter))
            yield counter
        outcomes = CounterMetricFamily(
            "octavo_inference_tensor_requests",
            "Requests for tensors that are over, by what became of them.",
            labels=(*LABELS, "outcome"),
        )
        for labels, model in models:
            for outcome, number in model.meter.outcomes.copy().items():
                outcomes.add_metric((*labels, outcome), number)
        yield outcomes
        for name, text, distribution in _HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=LABELS)
            for labels, model in models:
                seen = distribution(model.meter)
                histogram.add_metric(labels, list(seen.cumulated()), seen.total)
            yield histogram
