"""Every phase of a job can be done again: nothing is registered twice, no measurement is repeated."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from octavo.v1 import registry_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.events import FILE, EventLog, EventReader
from services.trainer.job_directory import JobDirectory

pytestmark = pytest.mark.slow


def kill_worker(suite, name):
    directory = JobDirectory(suite.directory / "trainer" / "jobs" / name.removeprefix("jobs/"))
    assert directory.is_locked()
    os.kill(directory.worker_pid(), signal.SIGKILL)


def forget_after(directory, phase):
    """Cuts the job's events off after the beginning of a phase."""
    events = EventReader(directory.path).read_all()
    kept = next(event.sequence for event in events if event.progress.phase == phase)
    (directory.path / FILE).unlink()
    with EventLog(directory.path, attempt=0) as log:
        for event in events[:kept]:
            log.append(event)


async def test_a_worker_lost_after_training_registers_one_version(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        job = await suite.create(client, suite.spec(aliases=["champion"]))
        await suite.reached(client, job.name, lambda event: event.progress.phase == pb.JOB_PHASE_PROVE)
        kill_worker(suite, job.name)
        events = await suite.finished(client, job.name)
        job = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))
        assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
        assert job.attempt_count == 2
        assert list(job.outputs) == ["models/poet/versions/1"]
        assert len([event for event in events if event.HasField("evaluation")]) == 2
        # As if the worker had been lost after the registry answered and before it could note so.
        directory = JobDirectory(suite.directory / "trainer" / job.name)
        while directory.is_locked():
            await asyncio.sleep(0.05)
        await asyncio.to_thread(forget_after, directory, pb.JOB_PHASE_REGISTER)
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.trainer.worker", str(directory.path), cwd=Path(__file__).parents[3]
        )
        assert await worker.wait() == 0
        again = await asyncio.to_thread(EventReader(directory.path).read_all)
        assert [event.output.name for event in again if event.HasField("output")] == list(job.outputs)
        versions = await client.registry.ListVersions(registry_pb2.ListVersionsRequest(parent="models/poet"))
        assert versions.total_size == 1


async def test_a_registry_that_is_away_is_waited_for(suite):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with suite.registry(port), suite.trainer() as client:
        await suite.add_dataset(client, name="other")
    async with suite.trainer() as client:
        async with suite.registry(port):
            job = await suite.create(client, suite.spec(dataset="datasets/other", steps=60))
            seen = await suite.reached(client, job.name, lambda event: event.metric.step == 5)
        seen = await suite.reached(
            client, job.name, lambda event: "does not answer" in event.log.message, seen[-1].sequence
        )
        await asyncio.sleep(1.0)
        async with suite.registry(port):
            events = await suite.finished(client, job.name, seen[-1].sequence)
            assert events[-1].state_change.state == pb.JOB_STATE_SUCCEEDED


async def test_a_time_budget_is_measured_once_into_steps(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        spec = suite.spec()
        spec.time_budget.FromSeconds(4)
        spec.ClearField("evaluation_interval_steps")
        job = await suite.create(client, spec)
        assert job.plan.train.HasField("time_budget")
        await suite.reached(client, job.name, lambda event: event.metric.step == 20)
        kill_worker(suite, job.name)
        events = await suite.finished(client, job.name)
        plans = [event.plan for event in events if event.HasField("plan")]
        assert len(plans) == 1
        steps = [event.metric.step for event in events if event.HasField("metric")]
        assert steps == list(range(1, plans[0].train.steps + 1))
        assert events[-1].state_change.state == pb.JOB_STATE_SUCCEEDED
