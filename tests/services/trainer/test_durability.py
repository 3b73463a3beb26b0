"""Everything may be killed: an answered job goes on, and a watch sees each event once across all of it."""

import asyncio
import os
import random
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from octavo.addresses import Addresses
from octavo.client import AsyncClient
from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_directory import JobDirectory

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Process:
    """The trainer in a process of its own, to be killed."""

    def __init__(self, suite, **environment):
        self.port = free_port()
        self.suite = suite
        self.environment = environment
        self.process = None

    async def start(self):
        environment = os.environ | {
            "OCTAVO_DATA_DIR": str(self.suite.directory),
            "OCTAVO_TRAINER_PORT": str(self.port),
            "OCTAVO_TRAINER_RESTART_DELAY_S": "0.05",
            "OCTAVO_REGISTRY": self.suite.registry_address,
            "OCTAVO_METRICS_PORT": "0",
            **self.environment,
        }
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services", "trainer", cwd=ROOT, env=environment
        )

    async def kill(self):
        self.process.kill()
        await self.process.wait()

    @asynccontextmanager
    async def running(self):
        await self.start()
        where = Addresses(registry=self.suite.registry_address, trainer=f"127.0.0.1:{self.port}")
        try:
            async with AsyncClient(where) as client:
                yield client
        finally:
            await self.kill()


async def answered(call):
    """The first answer of a server that is starting."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except Exception as error:
                if type(error).__name__ != "Unavailable":
                    raise
                await asyncio.sleep(0.1)


async def test_service_and_worker_may_be_killed_in_any_order_and_a_watch_sees_each_event_once(suite):
    trainer = Process(suite)
    async with trainer.running() as client:
        await suite.add_dataset(client)
        # Long enough that a fast machine is not done before it is killed.
        spec = suite.spec(steps=2400, evaluation_interval_steps=800)
        job = await answered(lambda: suite.create(client, spec))
        directory = JobDirectory(suite.directory / "trainer" / job.name)
        events = []

        async def watch():
            async for event in client.watch_job(job.name):
                events.append(event)

        async def seen(has_come):
            while not any(map(has_come, events)):
                assert not watching.done(), events[-1]
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        await seen(lambda event: event.metric.step == 50)
        worker = directory.worker_pid()
        await trainer.kill()  # the worker goes on alone
        await asyncio.sleep(0.5)
        assert directory.worker_pid() == worker
        assert directory.is_locked()
        await trainer.start()
        await seen(lambda event: event.metric.step == 200)
        os.kill(directory.worker_pid(), signal.SIGKILL)  # the service starts another
        await seen(lambda event: event.attempt_start.attempt == 2)
        await trainer.kill()  # both at once
        os.kill(directory.worker_pid(), signal.SIGKILL)
        await trainer.start()
        await watching

        job = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))
        assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert [event.metric.step for event in events if event.HasField("metric")] == list(range(1, 2401))
        assert [event.evaluation.step for event in events if event.HasField("evaluation")] == [800, 1600, 2400]
        assert job.attempt_count == 3


async def test_a_service_that_is_killed_at_any_moment_finds_all_its_workers_again(suite):
    moment = random.Random(7)
    trainer = Process(suite, OCTAVO_TRAINER_MAX_RUNNING_JOBS="3")
    async with trainer.running() as client:
        await suite.add_dataset(client)
        spec = suite.spec(steps=100_000, evaluation_interval_steps=0)
        jobs = [await answered(lambda: suite.create(client, spec)) for _ in range(3)]
        directories = [JobDirectory(suite.directory / "trainer" / job.name) for job in jobs]
        for job in jobs:
            await suite.reached(client, job.name, lambda event: event.metric.step == 1)
        workers = [directory.worker_pid() for directory in directories]
        for _ in range(3):
            await asyncio.sleep(moment.uniform(0, 0.5))
            await trainer.kill()
            await trainer.start()
            request = pb.PauseJobRequest(name=jobs[0].name)
            job = await answered(lambda request=request: client.trainer.PauseJob(request))
            # On a busy machine the answer may come before the worker is gone.
            async with asyncio.timeout(60):
                while job.state != pb.JOB_STATE_PAUSED:
                    await asyncio.sleep(0.1)
                    job = await client.trainer.GetJob(pb.GetJobRequest(name=request.name))
            resumed = pb.ResumeJobRequest(name=jobs[0].name)
            await answered(lambda resumed=resumed: client.trainer.ResumeJob(resumed))
        assert [directory.worker_pid() for directory in directories[1:]] == workers[1:]
        for job in jobs:
            last = (await client.trainer.GetJob(pb.GetJobRequest(name=job.name))).latest_metric.step
            seen = await suite.reached(client, job.name, lambda event, last=last: event.metric.step > last)
            assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
            steps = [event.metric.step for event in seen if event.HasField("metric")]
            assert steps == list(range(1, len(steps) + 1))
            ended = await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))
            assert ended.attempt_count == (4 if job.name == jobs[0].name else 1)


async def test_a_worker_that_is_told_to_stop_saves_first_and_goes_on_later(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        spec = suite.spec(steps=100_000, evaluation_interval_steps=0)
        spec.checkpoints.interval_steps = 0
        job = await suite.create(client, spec)
        await suite.reached(client, job.name, lambda event: event.metric.step == 30)
        directory = JobDirectory(suite.directory / "trainer" / job.name)
        os.kill(directory.worker_pid(), signal.SIGTERM)
        seen = await suite.reached(client, job.name, lambda event: event.attempt_start.attempt == 2)
        steps = [event.metric.step for event in seen if event.HasField("metric")]
        assert seen[-1].attempt_start.step == steps[-1]
        await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))


async def test_workers_stop_with_their_service_where_they_are_told_to_and_go_on_with_the_next(suite):
    async with suite.trainer(stop_workers=True) as client:
        await suite.add_dataset(client)
        spec = suite.spec(steps=100_000, evaluation_interval_steps=0)
        spec.checkpoints.interval_steps = 0
        job = await suite.create(client, spec)
        await suite.reached(client, job.name, lambda event: event.metric.step == 20)
        directory = JobDirectory(suite.directory / "trainer" / job.name)
        assert directory.is_locked()
    assert not directory.is_locked()
    async with suite.trainer() as client:
        seen = await suite.reached(client, job.name, lambda event: event.attempt_start.attempt == 2)
        assert seen[-1].attempt_start.step >= 20
        await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))
