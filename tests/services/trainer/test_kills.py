"""Killed at a random moment, whatever it was doing, a job ends with the digests of one that nobody disturbed.

`pytest -m endurance tests/services/trainer/test_kills.py -s` does it thirty times and says in which phases.
"""

import asyncio
import os
import random
import signal
from collections import Counter

import pytest

from octavo.v1 import registry_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_directory import JobDirectory

pytestmark = pytest.mark.slow

MADE = ("model.safetensors", "model.onnx", "tokenizer.json")


async def digests(suite, client, name):
    """What a job that ended well has come to: its metrics, its last state, its history and the files of its version."""
    job = await client.trainer.GetJob(pb.GetJobRequest(name=name))
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    version = await client.registry.ResolveVersion(registry_pb2.ResolveVersionRequest(reference=job.outputs[0]))
    curves = await client.trainer.ListMetrics(pb.ListMetricsRequest(parent=name))
    return {
        "losses": [(one.step, one.loss, one.gradient_norm) for one in curves.metrics],
        "validation": [(one.step, one.validation_loss) for one in curves.evaluations],
        "state": job.latest_checkpoint.state_digest,
        "history": job.latest_checkpoint.history_digest,
        "files": {file.path: file.blob for file in version.files if file.path in MADE},
    }


def lasted_s(events):
    """From the moment at which a worker is at work to the end of the job."""
    start = next(event for event in events if event.HasField("attempt_start"))
    return (events[-1].create_time.ToNanoseconds() - start.create_time.ToNanoseconds()) / 1e9


async def killed_in(suite, client, name, moment_s):
    """Kills the worker so long after it is at work; the phase it was in, or None where the job had ended before."""
    await suite.reached(client, name, lambda event: event.HasField("attempt_start"))
    await asyncio.sleep(moment_s)
    directory = JobDirectory(suite.directory / "trainer" / name)
    pid = directory.worker_pid()
    if not directory.is_locked() or pid is None:
        return None
    os.kill(pid, signal.SIGKILL)
    job = await client.trainer.GetJob(pb.GetJobRequest(name=name))
    return pb.JobPhase.Name(job.progress.phase).removeprefix("JOB_PHASE_").lower()


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.endurance)])
async def test_a_job_killed_at_a_random_moment_ends_as_an_undisturbed_one(suite, kills):
    chance = random.Random(kills)
    phases = Counter()
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        spec = suite.spec(steps=600, evaluation_interval_steps=150, dropout=0.1)
        undisturbed = await suite.create(client, spec)
        duration_s = lasted_s(await suite.finished(client, undisturbed.name))
        expected = await digests(suite, client, undisturbed.name)
        assert len(expected["files"]) == len(MADE)
        while phases.total() < kills:
            job = await suite.create(client, spec)
            phase = await killed_in(suite, client, job.name, chance.uniform(0, duration_s))
            await suite.finished(client, job.name)
            if phase is not None:
                phases[phase] += 1
            assert await digests(suite, client, job.name) == expected, phase
    print(f"{phases.total()} of {kills} killed jobs ended as the undisturbed one; killed while: {dict(phases)}")
