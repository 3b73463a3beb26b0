"""The configurations that did best on a dataset: jobs grouped by what they learnt, ranked by a mean over chance."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Final

from octavo.errors import InvalidArgument, NotFound
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.checks.names import ID
from services.trainer.job_measures import MEASURES, JobRecord, check_metric

DEFAULT_METRIC: Final = "bits_per_byte"
MAX_OTHERS: Final = 100
_NOT_COUNTED: Final = frozenset({pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})

Scored = tuple[float, JobRecord]


def check_request(request: pb.GetBestConfigurationRequest) -> None:
    """InvalidArgument where dataset or metric are none, or too many are asked for."""
    if not re.fullmatch(rf"datasets/{ID}(/versions/[1-9][0-9]{{0,17}})?", request.dataset):
        raise InvalidArgument.field(
            "dataset",
            f"{request.dataset[:90]!r} is not a name such as `datasets/tiny` or `datasets/tiny/versions/2`",
            reason=Reason.REASON_INVALID_NAME,
        )
    check_metric("metric", request.metric or DEFAULT_METRIC)
    if not 0 <= request.max_others <= MAX_OTHERS:
        raise InvalidArgument.field("max_others", f"{request.max_others} is not from 0 to {MAX_OTHERS}")


def best_configuration(
    records: Sequence[JobRecord], request: pb.GetBestConfigurationRequest
) -> pb.GetBestConfigurationResponse:
    """The best of `records`, all jobs there are, as the request asks. NotFound where none has the metric."""
    metric = request.metric or DEFAULT_METRIC
    dataset, scored = _newest(_scored(records, request.dataset, metric))
    if not scored:
        raise NotFound(
            Reason.REASON_JOB_NOT_FOUND,
            f"no job on {request.dataset} has {metric} yet; train one, or ask for another metric",
            dataset=request.dataset,
            metric=metric,
        )
    order = MEASURES[metric].order
    ranked = sorted((_ranked(group, metric) for group in _groups(scored)), key=lambda one: order(one.mean))
    others = ranked[1 : 1 + request.max_others]
    return pb.GetBestConfigurationResponse(dataset=dataset, metric=metric, best=ranked[0], others=others)


def _scored(records: Sequence[JobRecord], dataset: str, metric: str) -> Mapping[str, list[Scored]]:
    """The jobs that count with their values, by the version of the dataset they learnt from."""
    by_version: dict[str, list[Scored]] = {}
    for record in records:
        used = record.job.plan.train.dataset
        if record.job.state in _NOT_COUNTED or dataset not in (used, used.partition("/versions/")[0]):
            continue
        value = MEASURES[metric].value(record)
        if value is not None:
            by_version.setdefault(used, []).append((value, record))
    return by_version


def _newest(by_version: Mapping[str, list[Scored]]) -> tuple[str, list[Scored]]:
    """Values on different texts cannot be compared: those on the newest version."""
    name = max(by_version, key=lambda version: int(version.rpartition("/")[2] or 0), default="")
    return name, by_version.get(name, [])


def _groups(scored: Sequence[Scored]) -> list[list[Scored]]:
    groups: dict[str, list[Scored]] = {}
    for value, record in scored:
        groups.setdefault(record.job.configuration_id, []).append((value, record))
    return list(groups.values())


def _ranked(group: Sequence[Scored], metric: str) -> pb.RankedConfiguration:
    best_first = sorted(group, key=lambda pair: MEASURES[metric].order(pair[0]))
    values = [value for value, _ in best_first]
    jobs = [record.job for _, record in best_first]
    return pb.RankedConfiguration(
        configuration_id=jobs[0].configuration_id,
        mean=statistics.fmean(values),
        standard_deviation=statistics.stdev(values) if len(values) > 1 else None,
        jobs=[job.name for job in jobs],
        train=jobs[0].plan.train,
    )
