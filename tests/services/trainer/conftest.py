"""A trainer and a registry as they run for people, on free ports and a temporary directory."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import pytest

from octavo.addresses import Addresses
from octavo.client import AsyncClient
from octavo.serving import ProcessMetrics, Telemetry, running
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from services import registry, trainer
from services.trainer.job_directory import JobDirectory

TEXT = "".join(
    f"{number} green bottles hanging on the wall, and if {number % 7} should fall there are {number - 1} left.\n"
    for number in range(400, 0, -1)
)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    """Tests run beside one another: threads that spin at barriers would starve each other a hundredfold."""
    import torch

    torch.set_num_threads(1)


class Suite:
    """A running registry and trainer with a client to both; `restart_trainer` is what a new process would do."""

    def __init__(self, directory, **settings):
        self.directory = directory
        self.settings = {"max_restarts": 3, "restart_delay_s": 0.05, "stop_grace_s": 20.0} | settings
        self.registry_address = ""

    def kill_workers(self):
        """Workers outlive a test that failed, as they outlive everything."""
        for path in (self.directory / "trainer" / "jobs").glob("*"):
            directory = JobDirectory(path)
            if directory.is_locked():
                os.kill(directory.worker_pid(), signal.SIGKILL)

    @asynccontextmanager
    async def registry(self, port=0):
        settings = registry.Settings(port=port, data_dir=self.directory, drain_s=0.2)
        service = registry.assemble(settings, Telemetry.create("registry", ProcessMetrics()))
        async with running(service) as addresses:
            self.registry_address = addresses["registry"]
            yield

    @asynccontextmanager
    async def trainer(self, **settings):
        chosen = trainer.Settings(
            port=0, data_dir=self.directory, registry=self.registry_address, drain_s=0.2, **(self.settings | settings)
        )
        service = trainer.assemble(chosen, Telemetry.create("trainer", ProcessMetrics()))
        async with running(service) as addresses:
            where = Addresses(registry=self.registry_address, trainer=addresses["trainer"])
            async with AsyncClient(where) as client:
                yield client

    async def add_dataset(self, client, text=TEXT, name="tiny"):
        path = self.directory / f"{name}.txt"
        content = text if isinstance(text, bytes) else text.encode()
        await asyncio.to_thread(path.write_bytes, content)
        blob = await client.upload(path)
        dataset = datasets_pb2.Dataset(blob=blob.name, format=datasets_pb2.DATASET_FORMAT_TEXT)
        await client.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(dataset=dataset, dataset_id=name))

    @staticmethod
    def spec(**changes):
        """A model that trains in a second or two."""
        spec = pb.TrainSpec(
            dataset="datasets/tiny",
            model="models/poet",
            steps=40,
            architecture=pb.Architecture(layers=1, heads=2, width=32, context_length=32),
            batch_size=4,
            evaluation_interval_steps=20,
            checkpoints=pb.CheckpointPolicy(interval_steps=10),
            sample=pb.SampleSpec(length=16),
            threads=1,
        )
        spec.MergeFrom(pb.TrainSpec(**changes))
        return spec

    @staticmethod
    async def create(client, spec, **fields):
        """Creates a train job."""
        job = {key: fields.pop(key) for key in ("labels", "priority", "display_name") if key in fields}
        return await client.trainer.CreateJob(pb.CreateJobRequest(job=pb.Job(train=spec, **job), **fields))

    @staticmethod
    async def finished(client, name, after_sequence=0):
        """All events of a job, to its end."""
        return [event async for event in client.watch_job(name, after_sequence)]

    @staticmethod
    async def reached(client, name, is_reached, after_sequence=0):
        """The events of a job up to the first that satisfies `is_reached`."""
        seen = []
        async for event in client.watch_job(name, after_sequence):
            seen.append(event)
            if is_reached(event):
                return seen
        raise AssertionError(f"{name} ended before: {seen[-1]}")


@pytest.fixture
async def suite(tmp_path):
    suite = Suite(tmp_path)
    async with suite.registry():
        yield suite
    suite.kill_workers()
