"""Where memory is short a job splits its microbatch and goes on with the same batch, data and step."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
import torch

from octavo.addresses import Addresses
from octavo.client import AsyncClient
from octavo.errors import DeadlineExceeded, Unavailable
from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_directory import JobDirectory
from services.trainer.memory_shortage import OomKills, is_out_of_memory

ROOT = Path(__file__).parents[3]

# One pass over 128 sequences of these takes some 400 MiB, over 16 of them an eighth of it.
WIDE = {
    "architecture": pb.Architecture(layers=2, heads=2, width=64, context_length=128),
    "batch_size": 128,
    "microbatch_size": 128,
    "steps": 3,
    "precision": pb.TRAINING_PRECISION_FP32,
    "checkpoints": pb.CheckpointPolicy(interval_steps=2),
    "sample": pb.SampleSpec(length=0),
}


def wide(suite):
    spec = suite.spec(**WIDE)
    spec.evaluation_interval_steps = 0
    spec.checkpoints.interval_steps = 2
    return spec


def metrics_of(events):
    return [event.metric for event in events if event.HasField("metric")]


@pytest.mark.slow
async def test_a_step_that_the_allocator_has_no_memory_for_is_done_in_smaller_microbatches(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        free = await suite.create(client, wide(suite))
        expected = metrics_of(await suite.finished(client, free.name))

        job = await suite.create(client, wide(suite))
        begun = await suite.reached(client, job.name, lambda event: event.HasField("plan"))
        pid = JobDirectory(suite.directory / "trainer" / job.name).worker_pid()
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(pid, resource.RLIMIT_AS, (psutil.Process(pid).memory_info().vms + (300 << 20), unlimited))
        trained = await suite.reached(client, job.name, lambda event: event.metric.step == 3, begun[-1].sequence)
        resource.prlimit(pid, resource.RLIMIT_AS, (unlimited, unlimited))
        await suite.finished(client, job.name, trained[-1].sequence)
        job = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert job.attempt_count == 1
    assert job.recoveries
    for recovery in job.recoveries:
        assert recovery.cause == pb.RECOVERY_CAUSE_OUT_OF_MEMORY
        assert recovery.step == recovery.failed_step - 1
    assert job.recoveries[-1].microbatch_size < 128
    metrics = metrics_of(trained)
    assert [metric.step for metric in metrics] == [1, 2, 3]
    assert [metric.loss for metric in metrics] == pytest.approx([metric.loss for metric in expected], rel=1e-4)


@pytest.fixture
def small_cgroup():
    """A memory cgroup of our own, or none where we may not make one."""
    version_1 = Path("/sys/fs/cgroup/memory")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"octavo-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("making memory cgroups is not allowed here")
    limit = group / ("memory.limit_in_bytes" if version_1.is_dir() else "memory.max")
    try:
        limit.write_text(str(900 << 20))
    except OSError:
        group.rmdir()
        pytest.skip("limiting the memory of a cgroup is not allowed here")
    yield group
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    while (group / "cgroup.procs").read_text().strip():
        time.sleep(0.02)
    group.rmdir()


@pytest.mark.slow
async def test_a_worker_that_the_kernel_kills_for_want_of_memory_goes_on_in_smaller_microbatches(suite, small_cgroup):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "OCTAVO_DATA_DIR": str(suite.directory),
        "OCTAVO_TRAINER_PORT": str(port),
        "OCTAVO_TRAINER_RESTART_DELAY_S": "0.05",
        "OCTAVO_REGISTRY": suite.registry_address,
        "OCTAVO_METRICS_PORT": "0",
    }
    enter = f"echo $$ > {small_cgroup}/cgroup.procs; exec {sys.executable} -m services trainer"
    process = await asyncio.create_subprocess_exec("sh", "-c", enter, cwd=ROOT, env=environment)
    where = Addresses(registry=suite.registry_address, trainer=f"127.0.0.1:{port}")
    async with AsyncClient(where) as client:
        await suite.add_dataset(client)
        spec = wide(suite)
        spec.batch_size = spec.microbatch_size = 256
        request_id = str(uuid.uuid4())
        while True:
            try:
                job = await suite.create(client, spec, request_id=request_id)
                break
            except (Unavailable, DeadlineExceeded):  # it is starting, with little memory
                await asyncio.sleep(0.1)
        await suite.finished(client, job.name)
        job = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))
    process.terminate()
    await process.wait()

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert {recovery.cause for recovery in job.recoveries} == {pb.RECOVERY_CAUSE_KILLED_FOR_MEMORY}
    assert job.recoveries[-1].microbatch_size < 256
    assert job.attempt_count == 1 + len(job.recoveries)


@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/pods/trainer", "sys/fs/cgroup/pods/trainer/memory.events"),
        ("0::/", "sys/fs/cgroup/memory.events"),
        ("4:cpu,memory:/pods/trainer", "sys/fs/cgroup/memory/pods/trainer/memory.oom_control"),
        ("0::/nowhere", "proc/vmstat"),
    ],
)
def test_kills_are_counted_where_the_process_lives_from_when_it_is_looked_at(tmp_path, group, file):
    for path, content in (("proc/7/cgroup", group), ("proc/vmstat", "oom_kill 900"), (file, "oom 5\noom_kill 3")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{content}\n")
    kills = OomKills(7, tmp_path)
    assert not kills.is_any()
    (tmp_path / file).write_text("oom 6\noom_kill 4\n")
    assert kills.is_any()


def test_a_system_that_does_not_tell_has_no_kills(tmp_path):
    assert not OomKills(7, tmp_path).is_any()


def test_allocators_say_in_their_own_ways_that_memory_is_out():
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
