"""Jobs side by side: what differs in their specs, who is best by which metric, and curves over the same places."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf.json_format import MessageToDict

from octavo.errors import InvalidArgument
from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_measures import MEASURES, JobRecord, check_metric

MAX_JOBS: Final = 20
MAX_POINTS: Final = 10_000
DEFAULT_POINTS: Final = 200
# Metrics that fall from evaluation to evaluation: of these it can be said when a job got somewhere.
_PROGRESSIVE: Final = frozenset({"bits_per_byte", "validation_loss", "perplexity"})


def check_request(request: pb.CompareJobsRequest) -> None:
    """InvalidArgument where jobs are too few, too many or named twice, points too many or a metric unknown."""
    wrong = {}
    if not 2 <= len(set(request.names)) <= MAX_JOBS or len(set(request.names)) < len(request.names):
        wrong["names"] = f"name 2 to {MAX_JOBS} different jobs"
    if not 0 <= request.max_points <= MAX_POINTS:
        wrong["max_points"] = f"{request.max_points} is not from 0 to {MAX_POINTS}; 0 means {DEFAULT_POINTS}"
    if request.axis not in pb.CurveAxis.values():
        wrong["axis"] = f"{request.axis} is none of STEP, TOKENS and TIME"
    for index, metric in enumerate(request.metrics):
        try:
            check_metric(f"metrics[{index}]", metric)
        except InvalidArgument as error:
            wrong |= error.violations
    if wrong:
        raise InvalidArgument.fields(wrong)


def compare(records: Sequence[JobRecord], request: pb.CompareJobsRequest) -> pb.CompareJobsResponse:
    """The jobs of `records`, which are those of the request in its order."""
    axis = request.axis or pb.CURVE_AXIS_STEP
    points = request.max_points or DEFAULT_POINTS
    response = pb.CompareJobsResponse(axis=axis, differences=_differences([record.job for record in records]))
    grid = _grid([_places(record, axis) for record in records], points)
    for record in records:
        metrics, evaluations = record.curves
        response.jobs.add(
            job=record.job,
            metrics=thinned(metrics, points),
            evaluations=evaluations,
            training_curve=_training_curve(record, axis, grid),
            validation_curve=_validation_curve(record, axis),
        )
    response.metrics.extend(_compared(name, records) for name in request.metrics or MEASURES)
    response.best_job = response.metrics[0].best_job
    response.verdict = _verdict(response.metrics[0], records)
    return response


def thinned(metrics: Sequence[pb.TrainingMetric], max_points: int) -> list[pb.TrainingMetric]:
    """At most `max_points` of them, evenly spread, the last one included."""
    count = len(metrics)
    if count <= max_points:
        return list(metrics)
    return [metrics[(index + 1) * count // max_points - 1] for index in range(max_points)]


def _differences(jobs: Sequence[pb.Job]) -> list[pb.SpecDifference]:
    """The leaves of the resolved specs that are not the same in all; export jobs have their own."""
    resolved = [getattr(job.plan, job.plan.WhichOneof("resolved") or "train") for job in jobs]
    kinds = [job.plan.WhichOneof("resolved") or "train" for job in jobs]
    specs = [
        _flat(MessageToDict(spec, preserving_proto_field_name=True), kind)
        for spec, kind in zip(resolved, kinds, strict=True)
    ]
    rows = [(field, [spec.get(field, "") for spec in specs]) for field in sorted(set().union(*specs))]
    return [pb.SpecDifference(field=field, values=values) for field, values in rows if len(set(values)) > 1]


def _compared(name: str, records: Sequence[JobRecord]) -> pb.MetricComparison:
    measure = MEASURES[name]
    values = [measure.value(record) for record in records]
    answer = pb.MetricComparison(metric=name, is_lower_better=measure.is_lower_better)
    known = [value for value in values if value is not None]
    best = min(known, key=measure.order, default=None)
    for record, value in zip(records, values, strict=True):
        shown = answer.values.add()
        if value is None or best is None:
            continue
        shown.value, shown.difference = value, value - best
        if best:
            shown.relative_difference = (value - best) / abs(best)
        if value == best and not answer.best_job:
            answer.best_job = record.job.name
    return answer


def _places(record: JobRecord, axis: int) -> Sequence[float]:
    """Where on the axis each metric of a job lies."""
    if axis == pb.CURVE_AXIS_TIME:
        return record.training_s
    return [float(one.tokens if axis == pb.CURVE_AXIS_TOKENS else one.step) for one in record.curves[0]]


def _grid(places: Sequence[Sequence[float]], points: int) -> Sequence[float]:
    """At most `points` places that the jobs have in common: those of their longest run, evenly spread."""
    ends = [one[-1] for one in places if one]
    starts = [one[0] for one in places if one]
    if not ends:
        return []
    longest = max(places, key=lambda one: one[-1] if one else 0.0)
    count = min(points, len(longest))
    if count == 1:
        return [max(ends)]
    grid: list[float] = np.linspace(min(starts), max(ends), count).tolist()
    return grid


def _training_curve(record: JobRecord, axis: int, grid: Sequence[float]) -> list[pb.CurvePoint]:
    places = _places(record, axis)
    if not places:
        return []
    inside = [x for x in grid if places[0] <= x <= places[-1]] or [places[-1]]
    losses = np.interp(inside, places, [metric.loss for metric in record.curves[0]]).tolist()
    return [pb.CurvePoint(x=x, y=y) for x, y in zip(inside, losses, strict=True)]


def _validation_curve(record: JobRecord, axis: int) -> list[pb.CurvePoint]:
    evaluations = record.curves[1]
    return [pb.CurvePoint(x=_at(record, axis, one.step), y=one.validation_loss) for one in evaluations]


def _at(record: JobRecord, axis: int, step: int) -> float:
    """Where on the axis a job was after a step."""
    if axis == pb.CURVE_AXIS_STEP:
        return float(step)
    steps = [metric.step for metric in record.curves[0]]
    index = min(bisect_left(steps, step), len(steps) - 1)
    return _places(record, axis)[index] if steps else 0.0


def _verdict(first: pb.MetricComparison, records: Sequence[JobRecord]) -> str:
    """One sentence: who is best, by how much, and when it was where the next best ended."""
    measure = MEASURES[first.metric]
    known = [(one.value, record) for one, record in zip(first.values, records, strict=True) if one.HasField("value")]
    if not known:
        return f"none of the jobs has {first.metric} yet"
    (best, winner), *others = sorted(known, key=lambda pair: measure.order(pair[0]))
    shown = f"{winner.job.name} is best by {first.metric}: {_figure(best)} {measure.unit}".rstrip()
    if not others:
        return f"{shown}; the others have none yet"
    second, runner = others[0]
    if second == best:
        return f"{shown}, as {runner.job.name}"
    share = f", {abs(second - best) / abs(second):.1%}" if second else ""
    side = "below" if best < second else "above"
    return f"{shown}{share} {side} {runner.job.name} ({_figure(second)}){_overtaking(first.metric, winner, second)}"


def _overtaking(metric: str, winner: JobRecord, mark: float) -> str:
    """When the winner got where the next best ended, if an evaluation shows it."""
    if metric not in _PROGRESSIVE:
        return ""
    for one in winner.curves[1]:
        if getattr(one, metric) <= mark:
            seconds = _at(winner, pb.CURVE_AXIS_TIME, one.step)
            tokens = _at(winner, pb.CURVE_AXIS_TOKENS, one.step)
            return f", which it passed by step {one.step:,}, after {tokens:,.0f} tokens and {seconds:.1f} s of training"
    return ""


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _flat(value: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Leaves by path, as JSON values."""
    leaves: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            leaves |= _flat(item, f"{prefix}.{key}")
        else:
            leaves[f"{prefix}.{key}"] = json.dumps(item, sort_keys=True)
    return leaves
