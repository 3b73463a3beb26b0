"""All jobs of a trainer in figures: how many, how well, how long, how fast."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from octavo.v1 import trainer_pb2 as pb

_WINDOWS_S: Final = (3600, 86_400)


def statistics_of(jobs: Sequence[pb.Job], max_running_jobs: int, now_s: float) -> pb.TrainingStatistics:
    """All jobs in figures; `now_s` is the present in seconds since 1970."""
    trained = [job for job in jobs if job.HasField("train")]
    answer = pb.TrainingStatistics(
        max_running_jobs=max_running_jobs,
        total_tokens=sum(job.progress.tokens for job in jobs),
        kinds=_figures((job.WhichOneof("spec") or "unknown", job) for job in jobs),
        datasets=_figures((job.plan.train.dataset.partition("/versions/")[0], job) for job in trained),
        models=_figures((job.train.model, job) for job in trained),
        throughput=[_throughput(trained, window_s, now_s) for window_s in _WINDOWS_S],
    )
    for job in jobs:
        answer.jobs_by_state[pb.JobState.Name(job.state)] += 1
        answer.jobs_by_kind[job.WhichOneof("spec") or "unknown"] += 1
    _fill_times(answer, jobs)
    return answer


def _fill_times(answer: pb.TrainingStatistics, jobs: Sequence[pb.Job]) -> None:
    durations_s = _durations_s(jobs)
    failures = sum(job.state == pb.JOB_STATE_FAILED for job in jobs)
    waits_s = [_between(job.create_time, job.start_time) for job in jobs if job.HasField("start_time")]
    if durations_s:
        answer.mean_duration.CopyFrom(_duration(statistics.fmean(durations_s)))
        answer.median_duration.CopyFrom(_duration(statistics.median(durations_s)))
    if durations_s or failures:
        answer.success_rate = len(durations_s) / (len(durations_s) + failures)
    if waits_s:
        answer.mean_waiting_duration.CopyFrom(_duration(statistics.fmean(waits_s)))
        answer.median_waiting_duration.CopyFrom(_duration(statistics.median(waits_s)))


def _figures(named: Iterable[tuple[str, pb.Job]]) -> Mapping[str, pb.JobFigures]:
    groups: dict[str, list[pb.Job]] = {}
    for name, job in named:
        groups.setdefault(name, []).append(job)
    return {name: _of_group(jobs) for name, jobs in groups.items()}


def _of_group(jobs: Sequence[pb.Job]) -> pb.JobFigures:
    durations_s = _durations_s(jobs)
    best = min((j.best_evaluation.bits_per_byte for j in jobs if j.HasField("best_evaluation")), default=None)
    return pb.JobFigures(
        jobs=len(jobs),
        succeeded_jobs=len(durations_s),
        failed_jobs=sum(job.state == pb.JOB_STATE_FAILED for job in jobs),
        mean_duration=_duration(statistics.fmean(durations_s)) if durations_s else None,
        tokens=sum(job.progress.tokens for job in jobs),
        best_bits_per_byte=best,
    )


def _throughput(trained: Sequence[pb.Job], window_s: int, now_s: float) -> pb.Throughput:
    """A job's tokens count as spread evenly over its time: its events alone know better, and they are many."""
    busy_s = tokens = 0.0
    for job in trained:
        if not job.HasField("start_time"):
            continue
        start_s = job.start_time.ToNanoseconds() / 1e9
        end_s = (job.end_time if job.HasField("end_time") else job.update_time).ToNanoseconds() / 1e9
        inside_s = min(end_s, now_s) - max(start_s, now_s - window_s)
        if inside_s > 0:
            busy_s += inside_s
            tokens += job.progress.tokens * inside_s / max(end_s - start_s, inside_s)
    rate = tokens / busy_s if busy_s else 0.0
    return pb.Throughput(
        window=_duration(window_s), tokens=round(tokens), busy_duration=_duration(busy_s), tokens_per_second=rate
    )


def _durations_s(jobs: Iterable[pb.Job]) -> list[float]:
    """From start to end, of jobs that succeeded."""
    return [_between(job.start_time, job.end_time) for job in jobs if job.state == pb.JOB_STATE_SUCCEEDED]


def _between(start: Timestamp, end: Timestamp) -> float:
    return max(0, end.ToNanoseconds() - start.ToNanoseconds()) / 1e9


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
