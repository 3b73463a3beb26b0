"""Lists come in pages that neither repeat nor lose anything; filters and tokens that are wrong are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InvalidArgument
from octavo.v1 import errors_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer import job_pages
from services.trainer.events import EventLog
from services.trainer.job_directory import JobDirectory
from services.trainer.jobs import JobStore


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite")
    store.open()
    for number in range(1, 26):
        state = pb.JOB_STATE_QUEUED if number % 5 else pb.JOB_STATE_SUCCEEDED
        job = pb.Job(name=f"jobs/j-{number}", state=state, train=pb.TrainSpec(), labels={"team": f"t{number % 2}"})
        store.insert(job, "", b"")
    yield store
    store.close()


def all_jobs(store, page_size, text=""):
    names, token = [], ""
    while True:
        request = pb.ListJobsRequest(page_size=page_size, page_token=token, filter=text)
        page = job_pages.list_jobs(store, store.read, request)
        names += [job.name for job in page.jobs]
        token = page.next_page_token
        if not token:
            return names, page.total_size


@pytest.mark.parametrize("page_size", [0, 1, 7, 25, 10_000])
def test_pages_together_are_the_whole_list_newest_first(store, page_size):
    assert all_jobs(store, page_size) == ([f"jobs/j-{number}" for number in range(25, 0, -1)], 25)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("state = SUCCEEDED", 5),
        ("state = JOB_STATE_QUEUED", 20),
        ('labels.team = "t1"', 13),
        ("labels.team = t1 AND state = QUEUED", 10),
        ("kind = train", 25),
        ("kind = tune", 0),
        ("labels.other = x", 0),
    ],
)
def test_filters_choose(store, text, count):
    names, total = all_jobs(store, 4, text)
    assert len(names) == len(set(names)) == total == count


@pytest.mark.parametrize("text", ["state = NOWHERE", "colour = red", "state", "state = A OR state = B", '"'])
def test_a_filter_that_is_not_understood_is_refused(text):
    with pytest.raises(InvalidArgument) as refusal:
        job_pages.JobFilter.parse(text)
    assert "filter" in refusal.value.violations


@given(st.text(max_size=60))
def test_any_page_token_is_understood_or_refused_as_one(token):
    if token:
        with pytest.raises(InvalidArgument) as refusal:
            job_pages.read_token(token, "jobs", "")
        assert refusal.value.reason == errors_pb2.REASON_INVALID_PAGE_TOKEN


def test_a_token_of_another_question_is_refused(store):
    page = job_pages.list_jobs(store, store.read, pb.ListJobsRequest(page_size=2))
    request = pb.ListJobsRequest(page_token=page.next_page_token, filter="kind = train")
    with pytest.raises(InvalidArgument, match="these arguments"):
        job_pages.list_jobs(store, store.read, request)


def test_a_negative_page_size_is_refused(store):
    with pytest.raises(InvalidArgument, match="negative"):
        job_pages.list_jobs(store, store.read, pb.ListJobsRequest(page_size=-1))


@pytest.fixture
def directory(tmp_path):
    directory = JobDirectory(tmp_path)
    directory.create(pb.Job(name="jobs/j"))
    with EventLog(tmp_path, attempt=1) as log:
        for step in range(1, 101):
            log.append(pb.JobEvent(metric=pb.TrainingMetric(step=step, loss=1 / step)))
            if step % 10 == 0:
                log.append(pb.JobEvent(evaluation=pb.Evaluation(step=step)))
                severity = pb.LOG_SEVERITY_WARNING if step % 20 == 0 else pb.LOG_SEVERITY_INFO
                log.log(severity, f"at {step}", step)
    return directory


@pytest.mark.parametrize(("stride", "expected"), [(0, range(1, 101)), (1, range(1, 101)), (30, [30, 60, 90, 100])])
def test_metrics_come_by_step_thinned_out_with_the_newest_kept(directory, stride, expected):
    metrics, evaluations, token = [], [], ""
    while True:
        request = pb.ListMetricsRequest(parent="jobs/j", page_size=3, page_token=token, stride_steps=stride)
        page = job_pages.list_metrics(directory, request)
        metrics += [metric.step for metric in page.metrics]
        evaluations += [one.step for one in page.evaluations]
        token = page.next_page_token
        if not token:
            break
    assert metrics == list(expected)
    assert page.total_size == len(metrics)
    assert evaluations == list(range(10, 101, 10))


def test_metrics_can_begin_after_a_step(directory):
    page = job_pages.list_metrics(directory, pb.ListMetricsRequest(parent="jobs/j", after_step=97))
    assert [metric.step for metric in page.metrics] == [98, 99, 100]
    assert [one.step for one in page.evaluations] == [100]


def test_metrics_can_be_thinned_out_to_so_many_with_their_extremes(directory):
    page = job_pages.list_metrics(directory, pb.ListMetricsRequest(parent="jobs/j", max_points=40))
    assert len(page.metrics) <= 40
    assert page.total_size == len(page.metrics)
    assert {page.metrics[0].step, page.metrics[-1].step} == {1, 100}
    with pytest.raises(InvalidArgument, match="max_points"):
        job_pages.list_metrics(directory, pb.ListMetricsRequest(parent="jobs/j", max_points=-1))


def test_log_lines_come_oldest_first_from_a_severity_on(directory):
    lines, token = [], ""
    while True:
        request = pb.ListLogsRequest(
            parent="jobs/j", page_size=2, page_token=token, min_severity=pb.LOG_SEVERITY_WARNING
        )
        page = job_pages.list_logs(directory, request)
        lines += [line.message for line in page.lines]
        assert all(line.sequence and line.HasField("create_time") for line in page.lines)
        token = page.next_page_token
        if not token:
            break
    assert lines == [f"at {step}" for step in range(20, 101, 20)]
    assert page.total_size == 5
