"""Jobs survive the loss of their worker, of the service, and of both at once; commands are obeyed."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.errors import Aborted, FailedPrecondition, NotFound
from octavo.formats.checkpoint import CheckpointFolder, arrays_equal
from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_directory import JobDirectory

pytestmark = pytest.mark.slow


def job_directory(suite, name):
    return JobDirectory(suite.directory / "trainer" / "jobs" / name.removeprefix("jobs/"))


def kill_worker(suite, name):
    directory = job_directory(suite, name)
    assert directory.is_locked()
    os.kill(directory.worker_pid(), signal.SIGKILL)


def at_step(step):
    return lambda event: event.metric.step >= step


def content(event):
    """An event without what depends on the clock."""
    copy = pb.JobEvent()
    copy.CopyFrom(event)
    copy.ClearField("create_time")
    copy.ClearField("attempt")
    copy.ClearField("sequence")
    for metric in [copy.metric] if copy.HasField("metric") else []:
        for field in ("step_duration", "tokens_per_second", "memory_bytes", "flops_utilization", "update_ratio"):
            metric.ClearField(field)
    return copy


def metrics_of(events):
    return [content(event) for event in events if event.HasField("metric")]


def endless(suite, **changes):
    """Long enough that it cannot end before it is stopped."""
    spec = suite.spec(**changes)
    spec.steps = 100_000
    spec.evaluation_interval_steps = 0
    return spec


async def test_a_killed_worker_resumes_by_itself_and_ends_with_the_same_weights(suite):
    spec = suite.spec(steps=240)
    spec.evaluation_interval_steps = 60
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        whole = await suite.create(client, spec)
        unbroken = await suite.finished(client, whole.name)

        broken = await suite.create(client, spec)
        for step in (25, 90, 170):
            await suite.reached(client, broken.name, at_step(step))
            kill_worker(suite, broken.name)
        events = await suite.finished(client, broken.name)
        job = await client.trainer.GetJob(pb.GetJobRequest(name=broken.name))

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert job.attempt_count == 4
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert metrics_of(events) == metrics_of(unbroken)
    assert [content(e).sample.text for e in events if e.HasField("sample")] == [
        content(e).sample.text for e in unbroken if e.HasField("sample")
    ]
    states = [
        CheckpointFolder(job_directory(suite, name).checkpoints).read(240).tensors for name in (whole.name, broken.name)
    ]
    assert arrays_equal(*states)


async def test_a_worker_goes_on_while_the_service_is_away_and_is_found_again(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        job = await suite.create(client, endless(suite))
        before = await suite.reached(client, job.name, at_step(5))
        pid = job_directory(suite, job.name).worker_pid()
    await asyncio.sleep(0.5)
    async with suite.trainer() as client:
        found = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))
        assert found.state == pb.JOB_STATE_RUNNING
        assert found.last_sequence > before[-1].sequence
        assert job_directory(suite, job.name).worker_pid() == pid
        assert found.attempt_count == 1
        last = before[-1].sequence
        after = await suite.reached(client, job.name, at_step(before[-1].metric.step + 50), last)
        assert [event.sequence for event in after] == list(range(last + 1, last + 1 + len(after)))
        steps = [event.metric.step for event in before + after if event.HasField("metric")]
        assert steps == list(range(1, len(steps) + 1))
        await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))


async def test_a_job_whose_worker_and_service_died_goes_on_from_its_checkpoint(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        job = await suite.create(client, suite.spec(steps=120))
        await suite.reached(client, job.name, lambda event: event.checkpoint.step >= 20)
    kill_worker(suite, job.name)
    async with suite.trainer() as client:
        events = await suite.finished(client, job.name)
        job = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    steps = [event.metric.step for event in events if event.HasField("metric")]
    assert steps == list(range(1, 121))
    starts = [event.attempt_start.step for event in events if event.HasField("attempt_start")]
    assert starts[0] == 0
    assert starts[1] >= 20


async def test_a_damaged_checkpoint_is_passed_over_and_reported(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        job = await suite.create(client, endless(suite))
        await suite.reached(client, job.name, lambda event: event.checkpoint.step >= 40)
        await client.trainer.PauseJob(pb.PauseJobRequest(name=job.name))
        folder = CheckpointFolder(job_directory(suite, job.name).checkpoints)
        *_, older, newest = folder.steps()
        file = folder.read(newest).entry.path / "state.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        await client.trainer.ResumeJob(pb.ResumeJobRequest(name=job.name))
        last = (await client.trainer.GetJob(pb.GetJobRequest(name=job.name))).last_sequence
        events = await suite.reached(client, job.name, lambda event: event.HasField("metric"), last)
        start = next(event.attempt_start for event in events if event.HasField("attempt_start"))
        assert start.step == older
        assert str(newest) in start.damaged_checkpoints[0]
        await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))


async def test_a_worker_that_is_lost_without_getting_further_fails_its_job_with_advice(suite):
    async with suite.trainer(max_restarts=1) as client:
        await suite.add_dataset(client)
        spec = endless(suite)
        spec.checkpoints.interval_steps = 0
        job = await suite.create(client, spec)
        last = 0
        for _ in range(2):
            events = await suite.reached(client, job.name, lambda event: event.HasField("attempt_start"), last)
            last = (await suite.reached(client, job.name, lambda e: e.progress.phase == pb.JOB_PHASE_TRAIN, last))[
                -1
            ].sequence
            kill_worker(suite, job.name)
        events = await suite.finished(client, job.name)
        assert events[-1].state_change.state == pb.JOB_STATE_FAILED
        job = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))
        assert "SIGKILL" in job.error.message
        assert "make context_length or size smaller" in job.error.message
        logs = await client.trainer.ListLogs(pb.ListLogsRequest(parent=job.name))
        assert any("was lost (SIGKILL)" in line.message for line in logs.lines)


async def test_cancelling_keeps_the_last_checkpoint_and_ends_the_watch(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        job = await suite.create(client, endless(suite))
        await suite.reached(client, job.name, at_step(15))
        cancelled = await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))
        assert cancelled.state == pb.JOB_STATE_CANCELLED
        events = await suite.finished(client, job.name)
        assert events[-1].state_change.state == pb.JOB_STATE_CANCELLED
        steps = CheckpointFolder(job_directory(suite, job.name).checkpoints).steps()
        assert steps[-1] == cancelled.latest_checkpoint.step == cancelled.latest_metric.step
        again = await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))
        assert again.last_sequence == cancelled.last_sequence
        assert await suite.finished(client, job.name, cancelled.last_sequence) == []


async def test_a_worker_that_does_not_obey_is_killed_and_its_job_cancelled(suite):
    async with suite.trainer(stop_grace_s=0.5) as client:
        await suite.add_dataset(client)
        job = await suite.create(client, endless(suite))
        await suite.reached(client, job.name, at_step(3))
        os.kill(job_directory(suite, job.name).worker_pid(), signal.SIGSTOP)
        cancelled = await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))
        assert cancelled.state == pb.JOB_STATE_CANCELLED
        assert not job_directory(suite, job.name).is_locked()


async def test_a_paused_job_gives_its_place_away_and_goes_on_where_it_stopped(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        first = await suite.create(client, endless(suite))
        second = await suite.create(client, suite.spec())
        assert second.state == pb.JOB_STATE_QUEUED
        assert second.queue_position == 1
        await suite.reached(client, first.name, at_step(15))
        paused = await client.trainer.PauseJob(pb.PauseJobRequest(name=first.name))
        assert paused.state == pb.JOB_STATE_PAUSED
        assert (await suite.finished(client, second.name))[-1].state_change.state == pb.JOB_STATE_SUCCEEDED
        await client.trainer.ResumeJob(pb.ResumeJobRequest(name=first.name))
        events = await suite.reached(client, first.name, at_step(paused.latest_metric.step + 10))
        starts = [event.attempt_start.step for event in events if event.HasField("attempt_start")]
        assert starts == [0, paused.latest_metric.step]
        steps = [event.metric.step for event in events if event.HasField("metric")]
        assert steps == list(range(1, len(steps) + 1))
        await client.trainer.CancelJob(pb.CancelJobRequest(name=first.name))


async def test_a_checkpoint_is_written_when_asked_for(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        spec = endless(suite)
        spec.checkpoints.interval_steps = 0
        job = await suite.create(client, spec)
        await suite.reached(client, job.name, at_step(5))
        checkpoint = await client.trainer.CheckpointJob(pb.CheckpointJobRequest(name=job.name))
        kept = CheckpointFolder(job_directory(suite, job.name).checkpoints).read(checkpoint.step)
        assert kept.entry.digest == checkpoint.digest
        await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))
        with pytest.raises(FailedPrecondition, match="CANCELLED"):
            await client.trainer.CheckpointJob(pb.CheckpointJobRequest(name=job.name))


async def test_priority_goes_before_age(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        running = await suite.create(client, endless(suite))
        names = {}
        for label, priority in (("late", -1), ("first", 5), ("second", 0), ("third", 0)):
            job = await suite.create(client, suite.spec(), priority=priority)
            names[job.name] = label
        listed = (await client.trainer.ListJobs(pb.ListJobsRequest(filter="state = QUEUED"))).jobs
        order = [names[job.name] for job in sorted(listed, key=lambda job: job.queue_position)]
        assert order == ["first", "second", "third", "late"]
        for name in [*names, running.name]:
            cancelled = await client.trainer.CancelJob(pb.CancelJobRequest(name=name))
            assert cancelled.state == pb.JOB_STATE_CANCELLED


async def test_a_job_is_deleted_with_its_files_once_it_has_ended(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        job = await suite.create(client, endless(suite))
        with pytest.raises(FailedPrecondition, match="can be deleted"):
            await client.trainer.DeleteJob(pb.DeleteJobRequest(name=job.name))
        job = await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))
        with pytest.raises(Aborted):
            await client.trainer.DeleteJob(pb.DeleteJobRequest(name=job.name, etag="stale"))
        await client.trainer.DeleteJob(pb.DeleteJobRequest(name=job.name, etag=job.etag))
        assert not job_directory(suite, job.name).path.exists()
        with pytest.raises(NotFound):
            await client.trainer.GetJob(pb.GetJobRequest(name=job.name))


async def test_a_second_trainer_over_the_same_directory_is_refused(suite):
    async with suite.trainer():
        with pytest.raises(Exception, match="another trainer uses"):
            async with suite.trainer():
                pass


def test_a_second_worker_over_the_same_job_is_refused(tmp_path):
    directory = JobDirectory(tmp_path)
    lock = directory.try_lock()
    worker = subprocess.run(
        [sys.executable, "-m", "services.trainer.worker", str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(lock)
    assert worker.returncode == 73
    assert "another process" in worker.stderr
