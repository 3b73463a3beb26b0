"""Places, time limits, and what happens to jobs whose surroundings fail: each with a reason and nothing lost."""

import os

import pytest
from google.rpc import code_pb2

from octavo.errors import FailedPrecondition
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_directory import JobDirectory

pytestmark = pytest.mark.slow


def endless(suite):
    spec = suite.spec(steps=100_000, evaluation_interval_steps=0)
    spec.checkpoints.interval_steps = 0
    return spec


def at_step(step):
    return lambda event: event.metric.step >= step


async def job_of(client, name):
    return await client.trainer.GetJob(pb.GetJobRequest(name=name))


async def test_a_job_on_a_busy_place_says_for_what_it_waits_and_runs_when_the_paused_ones_memory_is_free(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        first = await suite.create(client, endless(suite))
        await suite.reached(client, first.name, at_step(5))
        second = await suite.create(client, endless(suite))
        assert second.state == pb.JOB_STATE_QUEUED
        assert second.state_message == f"waits for a place on the CPU, which {first.name} has"
        worker = JobDirectory(suite.directory / "trainer" / first.name).worker_pid()
        paused = await client.trainer.PauseJob(pb.PauseJobRequest(name=first.name))
        assert paused.state == pb.JOB_STATE_PAUSED
        assert "ResumeJob" in paused.state_message
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
        await suite.reached(client, second.name, at_step(1))
        await client.trainer.CancelJob(pb.CancelJobRequest(name=second.name))
        await client.trainer.CancelJob(pb.CancelJobRequest(name=first.name))


async def test_a_job_that_exceeds_its_timeout_fails_and_can_be_gone_on_from(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        job = await client.trainer.CreateJob(pb.CreateJobRequest(job=pb.Job(train=endless(suite), max_restarts=0)))
        await suite.reached(client, job.name, at_step(5))
        limit = pb.Job(name=job.name, timeout={"seconds": 1})
        await client.trainer.UpdateJob(pb.UpdateJobRequest(job=limit, update_mask={"paths": ["timeout"]}))
        await suite.finished(client, job.name)
        job = await job_of(client, job.name)
        assert job.state == pb.JOB_STATE_FAILED
        assert job.error.code == code_pb2.DEADLINE_EXCEEDED
        assert job.running_duration.ToNanoseconds() > 10**9
        assert job.latest_checkpoint.step == job.latest_metric.step > 0
        with pytest.raises(FailedPrecondition, match="FAILED"):
            change = pb.Job(name=job.name, live=pb.LiveSettings(weight_decay=0.1))
            await client.trainer.UpdateJob(pb.UpdateJobRequest(job=change))
        request = pb.ForkJobRequest(name=job.name, train=pb.TrainSpec(steps=job.latest_metric.step + 5))
        request.update_mask.paths.append("steps")
        fork = await client.trainer.ForkJob(request)
        assert (await suite.finished(client, fork.name))[-1].state_change.state == pb.JOB_STATE_SUCCEEDED


async def test_a_dataset_that_is_deleted_while_its_job_waits_fails_the_job_by_name(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        blocker = await suite.create(client, endless(suite))
        job = await suite.create(client, suite.spec())
        await suite.reached(client, blocker.name, at_step(1))
        await client.datasets.DeleteDataset(datasets_pb2.DeleteDatasetRequest(name="datasets/tiny"))
        await client.trainer.CancelJob(pb.CancelJobRequest(name=blocker.name))
        await suite.finished(client, job.name)
        job = await job_of(client, job.name)
        assert job.state == pb.JOB_STATE_FAILED
        assert job.error.code == code_pb2.NOT_FOUND
        assert "datasets/tiny" in job.state_message
        assert "deleted before the job began" in job.state_message
