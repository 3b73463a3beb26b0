"""A replay does steps of a job again and tells whether they are the same, and if not, what differed first."""

import pytest

from octavo.errors import FailedPrecondition, InvalidArgument, NotFound
from octavo.formats.checkpoint import CheckpointFolder
from octavo.formats.tensor_file import read_header
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.events import FILE, EventReader
from services.trainer.job_directory import JobDirectory
from services.trainer.records import RecordWriter
from services.trainer.replay import Recorded, check_environment, check_start, starting_point

pytestmark = pytest.mark.slow


async def replayed(suite, client, name, **window):
    """The replay of a job after its end."""
    job = await client.trainer.CreateJob(pb.CreateJobRequest(job=pb.Job(replay=pb.ReplaySpec(job=name, **window))))
    await suite.finished(client, job.name)
    return await client.trainer.GetJob(pb.GetJobRequest(name=job.name))


def rewritten(directory, change):
    """The events of a job as somebody would have them who changed one: whole, with the right checksums."""
    events = EventReader(directory.path).read_all()
    (directory.path / FILE).unlink()
    writer = RecordWriter(directory.path / FILE)
    for event in events:
        change(event)
        writer.append(event.SerializeToString())
    writer.close()


async def test_a_replay_says_that_all_is_the_same_or_what_differed_first(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        trained = await suite.create(client, suite.spec(dropout=0.1))
        await suite.finished(client, trained.name)

        job = await replayed(suite, client, trained.name, from_step=25, to_step=40)
        assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
        report = job.replay_report
        assert (report.is_equal, report.start_step, report.end_step, report.compared_steps) == (True, 20, 40, 20)
        assert [state.step for state in report.states] == [30, 40]
        assert all(state.recorded_digest == state.replayed_digest for state in report.states)
        assert job.progress.fraction == 1.0

        def falsify(event):
            if event.metric.step == 33:
                event.metric.gradient_norm += 1e-9

        directory = JobDirectory(suite.directory / "trainer" / trained.name)
        rewritten(directory, falsify)
        job = await replayed(suite, client, trained.name, from_step=30)
        assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
        difference = job.replay_report.first_difference
        assert not job.replay_report.is_equal
        assert (difference.step, difference.what) == (33, "gradient_norm")
        assert [state.is_equal for state in job.replay_report.states] == [True]
        logs = await client.trainer.ListLogs(pb.ListLogsRequest(parent=job.name, min_severity=pb.LOG_SEVERITY_WARNING))
        assert "gradient_norm of step 33" in logs.lines[0].message

        for window, field in (
            ({"to_step": 41}, "to_step"),
            ({"from_step": 40}, "from_step"),
            ({"from_step": -1}, "from_step"),
        ):
            with pytest.raises(InvalidArgument) as refused:
                await replayed(suite, client, trained.name, **window)
            assert f"job.replay.{field}" in refused.value.violations
        with pytest.raises(FailedPrecondition, match="kind replay"):
            await replayed(suite, client, job.name)


def environment(**changes):
    return pb.EnvironmentFingerprint(**({"digest": "sha256:a", "threads": 1, "torch_version": "2.13"} | changes))


def test_another_environment_is_refused_with_what_differs():
    now = environment(digest="sha256:b", threads=2, details={"cpu_capability": "AVX2"})
    check_environment([environment()], environment())
    with pytest.raises(FailedPrecondition, match="threads was 1, is 2; cpu_capability was , is AVX2") as refused:
        check_environment([environment()], now)
    assert refused.value.reason == Reason.REASON_ENVIRONMENT_DIFFERS


def test_only_where_the_steps_of_the_window_were_computed_counts():
    events = [pb.JobEvent(attempt=1, attempt_start=pb.AttemptStart(environment=environment()))]
    events += [pb.JobEvent(attempt=1, metric=pb.TrainingMetric(step=step)) for step in (1, 2)]
    moved = pb.AttemptStart(environment=environment(digest="sha256:b"))
    events += [pb.JobEvent(attempt=2, attempt_start=moved), pb.JobEvent(attempt=2, metric=pb.TrainingMetric(step=3))]
    recorded = Recorded(events)
    assert [one.digest for one in recorded.environments(1, 2)] == ["sha256:a"]
    assert [one.digest for one in recorded.environments(1, 3)] == ["sha256:a", "sha256:b"]


def kept(tmp_path, *steps):
    import numpy as np

    folder = CheckpointFolder(tmp_path)
    for step in steps:
        folder.write(step, {"weights": np.full((16,), step, np.float32)}, {})
    return folder


def test_it_begins_at_the_newest_whole_checkpoint_before_the_window_or_at_the_beginning(tmp_path):
    folder, own = kept(tmp_path, 10, 20, 30), pb.Job(name="jobs/own")
    assert starting_point(own, folder, 29)[0].entry.step == 20
    assert starting_point(own, folder, 9)[0] is None
    file = folder.read(20).entry.path / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[next(iter(read_header(file).tensors.values())).offset] ^= 1
    file.write_bytes(content)
    start, damages = starting_point(own, folder, 29)
    assert start.entry.step == 10
    assert "step 20" in damages[0]
    with pytest.raises(NotFound, match="from_step 10 or more"):
        starting_point(pb.Job(name="jobs/fork", parent_job="jobs/own"), folder, 9)


def test_a_checkpoint_that_is_not_the_one_of_the_events_is_refused(tmp_path):
    start = kept(tmp_path, 10).read(10)
    events = [pb.JobEvent(checkpoint=pb.Checkpoint(step=10, digest=start.entry.digest))]
    check_start(start, Recorded(events))
    events[0].checkpoint.digest = "sha256:other"
    with pytest.raises(Exception, match="not the one that was written"):
        check_start(start, Recorded(events))
