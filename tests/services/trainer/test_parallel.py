"""Several processes come to the bits of one, through a pause and the loss of any; none of them is left behind."""

import asyncio
import signal

import psutil
import pytest

from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_directory import JobDirectory

pytestmark = pytest.mark.slow


def ranks(suite, name):
    """The processes that the worker of a job has started."""
    return psutil.Process(JobDirectory(suite.directory / "trainer" / name).worker_pid()).children()


async def gone(processes):
    """Whether all of them end within a while."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=30)
    return not alive


async def ended(suite, client, name):
    """The job at its end, with the losses of all steps."""
    events = await suite.finished(client, name)
    job = await client.trainer.GetJob(pb.GetJobRequest(name=name))
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    return job, [(event.metric.step, event.metric.loss) for event in events if event.HasField("metric")]


async def test_two_processes_that_pause_and_of_which_one_is_killed_come_to_the_bits_of_one(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        spec = suite.spec(steps=120, batch_size=8, microbatch_size=2, dropout=0.1, evaluation_interval_steps=0)
        alone, losses = await ended(suite, client, (await suite.create(client, spec)).name)

        spec.processes = 2
        name = (await suite.create(client, spec)).name
        await suite.reached(client, name, lambda event: event.metric.step == 5)
        both = ranks(suite, name)
        assert len(both) == 2
        await client.trainer.PauseJob(pb.PauseJobRequest(name=name))
        seen = await suite.reached(client, name, lambda event: event.state_change.state == pb.JOB_STATE_PAUSED)
        assert await gone(both)

        await client.trainer.ResumeJob(pb.ResumeJobRequest(name=name))
        at = max(event.checkpoint.step for event in seen)
        await suite.reached(client, name, lambda event: event.metric.step == at + 10)
        both = ranks(suite, name)
        second = next(process for process in both if process.environ()["RANK"] == "1")
        second.send_signal(signal.SIGKILL)
        together, shared_losses = await ended(suite, client, name)
        assert await gone(both)

    assert together.attempt_count == 3
    assert shared_losses == losses
    assert together.latest_checkpoint.state_digest == alone.latest_checkpoint.state_digest
    assert together.latest_checkpoint.history_digest == alone.latest_checkpoint.history_digest


async def test_no_process_is_left_where_their_worker_is_killed_while_they_load(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        job = await suite.create(client, suite.spec(processes=2))
        directory = JobDirectory(suite.directory / "trainer" / job.name)
        while not (directory.worker_pid() and (started := ranks(suite, job.name))):
            await asyncio.sleep(0.05)
        await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))
        assert (await suite.finished(client, job.name))[-1].state_change.state == pb.JOB_STATE_CANCELLED
        assert await gone(started)
