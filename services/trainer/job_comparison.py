"""Jobs side by side, and all of them in figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict

from octavo.errors import InvalidArgument
from octavo.v1 import trainer_pb2 as pb

MAX_JOBS = 20
MAX_POINTS = 10_000
DEFAULT_POINTS = 200

Curves = tuple[Sequence[pb.TrainingMetric], Sequence[pb.Evaluation]]


def check_request(request: pb.CompareJobsRequest) -> None:
    """InvalidArgument where the jobs are too few, too many or named twice, or the points too many."""
    wrong = {}
    if not 2 <= len(set(request.names)) <= MAX_JOBS or len(set(request.names)) < len(request.names):
        wrong["names"] = f"name 2 to {MAX_JOBS} different jobs"
    if not 0 <= request.max_points <= MAX_POINTS:
        wrong["max_points"] = f"{request.max_points} is not from 0 to {MAX_POINTS}; 0 means {DEFAULT_POINTS}"
    if wrong:
        raise InvalidArgument.fields(wrong)


def compare(jobs: Sequence[pb.Job], curves: Sequence[Curves], max_points: int) -> pb.CompareJobsResponse:
    """What differs in the resolved specs, and curves of at most `max_points` points each; 0 means the default."""
    response = pb.CompareJobsResponse()
    for job, (metrics, evaluations) in zip(jobs, curves, strict=True):
        thin = thinned(metrics, max_points or DEFAULT_POINTS)
        response.jobs.add(job=job, metrics=thin, evaluations=evaluations)
    specs = [_flat(MessageToDict(job.plan.train, preserving_proto_field_name=True), "train") for job in jobs]
    for field in sorted(set().union(*specs)):
        values = [spec.get(field, "") for spec in specs]
        if len(set(values)) > 1:
            response.differences.add(field=field, values=values)
    evaluated = [job for job in jobs if job.HasField("best_evaluation")]
    if evaluated:
        response.best_job = min(evaluated, key=lambda job: job.best_evaluation.bits_per_byte).name
    return response


def thinned(metrics: Sequence[pb.TrainingMetric], max_points: int) -> list[pb.TrainingMetric]:
    """At most `max_points` of them, evenly spread, the last one included."""
    count = len(metrics)
    if count <= max_points:
        return list(metrics)
    return [metrics[(index + 1) * count // max_points - 1] for index in range(max_points)]


def statistics_of(jobs: Sequence[pb.Job], max_running_jobs: int) -> pb.TrainingStatistics:
    """All jobs in figures."""
    answer = pb.TrainingStatistics(max_running_jobs=max_running_jobs)
    durations_s = []
    for job in jobs:
        answer.jobs_by_state[pb.JobState.Name(job.state)] += 1
        answer.jobs_by_kind[job.WhichOneof("spec") or "unknown"] += 1
        answer.total_tokens += job.progress.tokens
        if job.state == pb.JOB_STATE_SUCCEEDED:
            durations_s.append((job.end_time.ToNanoseconds() - job.start_time.ToNanoseconds()) / 1e9)
    failures = answer.jobs_by_state.get("JOB_STATE_FAILED", 0)
    if durations_s:
        answer.mean_duration.FromNanoseconds(int(sum(durations_s) / len(durations_s) * 1e9))
    if durations_s or failures:
        answer.success_rate = len(durations_s) / (len(durations_s) + failures)
    return answer


def _flat(value: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Leaves by path, as JSON values."""
    leaves: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            leaves |= _flat(item, f"{prefix}.{key}")
        else:
            leaves[f"{prefix}.{key}"] = json.dumps(item, sort_keys=True)
    return leaves
