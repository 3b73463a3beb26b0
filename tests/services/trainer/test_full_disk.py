"""A disk that fills up pauses the jobs on it, with a reason; they go on by themselves when there is room."""

import asyncio
import os
import subprocess

import pytest

from octavo.errors import ResourceExhausted
from octavo.formats.checkpoint import CheckpointFolder
from octavo.v1 import errors_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.disk_room import awaits_room, needed_bytes
from services.trainer.job_directory import JobDirectory
from tests.services.trainer.conftest import Suite

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 32 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path):
    """Writes to a file until nothing more fits."""
    block = bytes(1 << 16)
    with path.open("wb", buffering=0) as file:
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]


async def test_a_job_on_a_full_disk_pauses_and_goes_on_when_there_is_room(suite, small_disk):
    on_disk = Suite(small_disk)
    on_disk.registry_address = suite.registry_address
    filler, rest = small_disk / "filler", small_disk / "rest"
    async with on_disk.trainer() as client:
        await suite.add_dataset(client)
        spec = suite.spec(steps=100_000, evaluation_interval_steps=0)
        job = await suite.create(client, spec)
        directory = JobDirectory(small_disk / "trainer" / job.name)
        try:
            await suite.reached(client, job.name, lambda event: event.checkpoint.step >= 20)
            await asyncio.to_thread(fill, filler)
            seen = await suite.reached(client, job.name, lambda e: e.state_change.state == pb.JOB_STATE_PAUSED)
            paused = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))
            assert awaits_room(paused)
            assert "goes on by itself" in paused.state_message
            assert not [path for path in directory.checkpoints.iterdir() if path.name.startswith(".")]
            newest, damages = CheckpointFolder(directory.checkpoints).read_newest()
            assert newest.entry.step == paused.latest_checkpoint.step
            assert not damages

            second = await suite.create(client, spec)
            while f"room on the disk, after {job.name}" not in second.state_message:
                await asyncio.sleep(0.05)
                second = await client.trainer.GetJob(pb.GetJobRequest(name=second.name))
            await asyncio.to_thread(fill, rest)
            with pytest.raises(ResourceExhausted) as refused:
                await suite.create(client, spec, job_id="third")
            assert refused.value.reason == errors_pb2.REASON_DISK_FULL
            os.truncate(filler, filler.stat().st_size - needed_bytes(paused) // 2)
            await asyncio.sleep(1.5)  # twice as long as it looks for room
            assert (await client.trainer.GetJob(pb.GetJobRequest(name=job.name))).state == pb.JOB_STATE_PAUSED

            filler.unlink()
            rest.unlink()
            last = seen[-1].sequence
            wanted = paused.latest_metric.step + 20
            seen += await suite.reached(client, job.name, lambda event: event.metric.step >= wanted, last)
            steps = [event.metric.step for event in seen if event.HasField("metric")]
            assert steps == list(range(1, len(steps) + 1))
            assert not [event for event in seen if "does not compute" in event.log.message]
            assert not (await client.trainer.GetJob(pb.GetJobRequest(name=job.name))).HasField("error")
            assert (await client.trainer.ListJobs(pb.ListJobsRequest())).total_size == 2
            for name in (second.name, job.name):
                await client.trainer.CancelJob(pb.CancelJobRequest(name=name))
        finally:
            filler.unlink(missing_ok=True)
            rest.unlink(missing_ok=True)
            on_disk.kill_workers()
