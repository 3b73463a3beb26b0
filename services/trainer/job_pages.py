"""Pages of jobs, metrics and log lines: filters, page tokens, and what of a job's events belongs on a page."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from octavo.errors import InvalidArgument
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.downsampling import downsampled
from services.trainer.events import TERMINAL, EventReader
from services.trainer.history import valid
from services.trainer.job_directory import JobDirectory
from services.trainer.jobs import JobStore
from services.trainer.log_lines import LogLines

DEFAULT_JOBS: Final = 50
MAX_JOBS: Final = 1000
DEFAULT_LINES: Final = 1000
MAX_LINES: Final = 10_000

_TERM: Final = re.compile(
    r'\s*(state|kind|configuration_id|labels\.[a-z0-9_.-]{1,63})\s*=\s*("[^"]{0,255}"|[\w.-]{1,255})\s*'
)


@dataclass(frozen=True)
class JobFilter:
    """Which jobs are asked for."""

    state: pb.JobState.ValueType | None = None
    kind: str = ""
    configuration_id: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> JobFilter:
        """`state = RUNNING AND labels.team = "poetry"`; raises InvalidArgument."""
        state, kind, configuration_id, labels = None, "", "", {}
        for term in re.split(r"\s+AND\s+", text.strip()) if text.strip() else []:
            match = _TERM.fullmatch(term)
            if match is None:
                raise InvalidArgument.field(
                    "filter",
                    f"{term!r} is not understood; join by AND: state = RUNNING, kind = train, "
                    'configuration_id = c-0123456789ab, labels.KEY = "VALUE"',
                )
            key, value = match[1], match[2].strip('"')
            if key == "state":
                state = _state(value)
            elif key == "kind":
                kind = value
            elif key == "configuration_id":
                configuration_id = value
            else:
                labels[key.removeprefix("labels.")] = value
        return cls(state, kind, configuration_id, labels)

    def admits(self, job: pb.Job) -> bool:
        """Whether the job is asked for."""
        return (
            (self.state is None or job.state == self.state)
            and (not self.kind or job.WhichOneof("spec") == self.kind)
            and (not self.configuration_id or job.configuration_id == self.configuration_id)
            and all(key in job.labels and job.labels[key] == value for key, value in self.labels.items())
        )


def list_jobs(store: JobStore, read: Callable[[str], pb.Job], request: pb.ListJobsRequest) -> pb.ListJobsResponse:
    """A page of jobs, newest first; `read` brings a job that lives up to date."""
    size = page_size(request.page_size, DEFAULT_JOBS, MAX_JOBS)
    chosen = JobFilter.parse(request.filter)
    before = read_token(request.page_token, "jobs", request.filter)
    known = ((ordinal, job if job.state in TERMINAL else read(job.name)) for ordinal, job in store.list_newest())
    rows = [(ordinal, job) for ordinal, job in known if chosen.admits(job)]
    page = [row for row in rows if not before or row[0] < before]
    response = pb.ListJobsResponse(total_size=len(rows), jobs=[job for _, job in page[:size]])
    if len(page) > size:
        response.next_page_token = write_token(page[size - 1][0], "jobs", request.filter)
    return response


def list_metrics(directory: JobDirectory, request: pb.ListMetricsRequest) -> pb.ListMetricsResponse:
    """A page of a job's metrics, and the evaluations that lie between its first and last step."""
    size = page_size(request.page_size, DEFAULT_LINES, MAX_LINES)
    wanted_of = {"stride_steps": "1 is every step", "after_step": "0 begins at the first", "max_points": "0 is all"}
    wrong = {
        field: f"{getattr(request, field)} is negative; {what}"
        for field, what in wanted_of.items()
        if getattr(request, field) < 0
    }
    if wrong:
        raise InvalidArgument.fields(wrong)
    asked = (request.parent, request.after_step, request.stride_steps, request.max_points)
    after = max(request.after_step, read_token(request.page_token, "metrics", *asked))
    metrics, evaluations = read_curves(directory)
    wanted = _thinned([metric for metric in metrics if metric.step > request.after_step], request.stride_steps)
    if request.max_points:
        wanted = downsampled(wanted, request.max_points)
    rest = [metric for metric in wanted if metric.step > after]
    page = rest[:size]
    response = pb.ListMetricsResponse(metrics=page, total_size=len(wanted))
    is_last = len(rest) <= size
    end = page[-1].step if page and not is_last else 1 << 62
    response.evaluations.extend(one for one in evaluations if after < one.step <= end)
    if not is_last:
        response.next_page_token = write_token(page[-1].step, "metrics", *asked)
    return response


def list_logs(directory: JobDirectory, request: pb.ListLogsRequest) -> pb.ListLogsResponse:
    """A page of a job's log lines."""
    size = page_size(request.page_size, DEFAULT_LINES, MAX_LINES)
    asked = (request.parent, int(request.min_severity))
    after = read_token(request.page_token, "logs", *asked)
    story = LogLines(directory.read_job().plan)
    told = (story.tell(event) for event in EventReader(directory.path).read_all())
    lines = [line for line in told if line is not None and line.severity >= request.min_severity]
    rest = [line for line in lines if line.sequence > after]
    response = pb.ListLogsResponse(lines=rest[:size], total_size=len(lines))
    if len(rest) > size:
        response.next_page_token = write_token(rest[size - 1].sequence, "logs", *asked)
    return response


def page_size(asked: int, default: int, maximum: int) -> int:
    """0 is the default, more than the maximum is the maximum (AIP-158); raises InvalidArgument below 0."""
    if asked < 0:
        raise InvalidArgument.field("page_size", f"{asked} is negative; 0 means {default}, at most {maximum}")
    return min(asked or default, maximum)


def write_token(position: int, *asked: object) -> str:
    """Where to go on, bound to what was asked."""
    text = json.dumps([position, _fingerprint(asked)])
    return base64.urlsafe_b64encode(text.encode()).decode()


def read_token(token: str, *asked: object) -> int:
    """The position of a token, 0 without one; InvalidArgument when it is not one of ours for this question."""
    if not token:
        return 0
    try:
        position, fingerprint = json.loads(base64.urlsafe_b64decode(token.encode()))
        if fingerprint == _fingerprint(asked) and isinstance(position, int):
            return position
    except (ValueError, TypeError, binascii.Error):
        pass  # said below, in one sentence for every kind of wrong token
    raise InvalidArgument.field(
        "page_token",
        "not a token of this list with these arguments; begin without one",
        reason=Reason.REASON_INVALID_PAGE_TOKEN,
    )


def _fingerprint(asked: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(list(asked), default=str).encode()).hexdigest()[:12]


def _state(value: str) -> pb.JobState.ValueType:
    name = f"JOB_STATE_{value.removeprefix('JOB_STATE_')}"
    names = pb.JobState.keys()
    if name not in names:
        known = ", ".join(one.removeprefix("JOB_STATE_") for one in names[1:])
        raise InvalidArgument.field("filter", f"{value!r} is not a state; there are {known}")
    return pb.JobState.Value(name)


def read_curves(directory: JobDirectory) -> tuple[list[pb.TrainingMetric], list[pb.Evaluation]]:
    """All metrics and evaluations of a job that hold, by step."""
    metrics: list[pb.TrainingMetric] = []
    evaluations: list[pb.Evaluation] = []
    for event in valid(EventReader(directory.path).read_all()):
        match event.WhichOneof("event"):
            case "metric":
                metrics.append(event.metric)
            case "evaluation":
                evaluations.append(event.evaluation)
    return metrics, evaluations


def _thinned(metrics: list[pb.TrainingMetric], stride: int) -> list[pb.TrainingMetric]:
    if stride <= 1 or not metrics:
        return metrics
    return [metric for metric in metrics[:-1] if metric.step % stride == 0] + metrics[-1:]
