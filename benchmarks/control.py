"""What supervision costs a training, and how soon a watcher sees a step.

`python -m benchmarks.control`: a job of the default recipe on Tiny Shakespeare, in its worker, under a service and with
one watcher, as for people. The overhead is the part of the time between steps that is not spent in a step: events,
commands, progress and checkpoints; evaluations and samples are left out of the job. The delay is from the stamp of a
metric's event, written when its step is done, to its arrival at the watcher. What the service itself takes of a core,
reading and streaming, is told beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from octavo.addresses import Addresses
from octavo.client import AsyncClient
from octavo.serving import ProcessMetrics, Telemetry, running
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from services import registry, trainer

DEFAULT_TEXT = Path(__file__).parents[1] / ".." / "shared" / "data" / "tinyshakespeare.txt"
# The first steps build kernels.
WARMUP_STEPS = 20


@dataclass
class Watched:
    """What a watcher saw of one job."""

    step_s: list[float] = field(default_factory=list)
    delay_s: list[float] = field(default_factory=list)
    checkpoint_s: list[float] = field(default_factory=list)
    first_s: float = 0.0
    last_s: float = 0.0

    def see(self, event: pb.JobEvent) -> None:
        """Note what an event says, now that it has arrived."""
        at_s = event.create_time.ToNanoseconds() / 1e9
        if event.HasField("checkpoint"):
            self.checkpoint_s.append(event.checkpoint.duration.ToNanoseconds() / 1e9)
        if event.metric.step == WARMUP_STEPS:
            self.first_s = at_s
        elif event.metric.step > WARMUP_STEPS:
            self.delay_s.append(time.time() - at_s)
            self.step_s.append(event.metric.step_duration.ToNanoseconds() / 1e9)
            self.last_s = at_s

    @property
    def overhead(self) -> float:
        """Part of the time that no step took, 0 to 1."""
        return 1.0 - sum(self.step_s) / (self.last_s - self.first_s)


def main() -> None:
    options = _options()
    if not options.text.is_file():
        sys.exit(f"{options.text} is not there; name a text with --text")
    with tempfile.TemporaryDirectory() as directory:
        watched, service_share = asyncio.run(_measure(Path(directory), options))
    _print(watched, service_share)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control", description=__doc__)
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT, help="the corpus, UTF-8")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps to watch")
    parser.add_argument("--size", type=int, default=4, help="the dial of the job")
    parser.add_argument("--checkpoint-interval", type=int, help="steps; the recipe's own unless said, about 30 s")
    return parser.parse_args()


async def _measure(directory: Path, options: argparse.Namespace) -> tuple[Watched, float]:
    """What the watcher saw, and how much of a core the services took meanwhile."""
    async with AsyncExitStack() as stack:
        registry_settings = registry.Settings(port=0, data_dir=directory)
        catalog = registry.assemble(registry_settings, Telemetry.create("registry", ProcessMetrics()))
        where = await stack.enter_async_context(running(catalog))
        settings = trainer.Settings(port=0, data_dir=directory, registry=where["registry"])
        jobs = trainer.assemble(settings, Telemetry.create("trainer", ProcessMetrics()))
        at = await stack.enter_async_context(running(jobs))
        addresses = Addresses(registry=where["registry"], trainer=at["trainer"])
        client = await stack.enter_async_context(AsyncClient(addresses))
        job = await _create(client, options)
        watched = Watched()
        began_s, used_s = time.perf_counter(), _used_s()
        async for event in client.watch_job(job.name):
            watched.see(event)
            if event.metric.step == WARMUP_STEPS:
                began_s, used_s = time.perf_counter(), _used_s()
            if event.metric.step == options.steps:
                break
        share = (_used_s() - used_s) / (time.perf_counter() - began_s)
        await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))
        return watched, share


async def _create(client: AsyncClient, options: argparse.Namespace) -> pb.Job:
    blob = await client.upload(options.text)
    dataset = datasets_pb2.Dataset(blob=blob.name, format=datasets_pb2.DATASET_FORMAT_TEXT)
    await client.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(dataset=dataset, dataset_id="text"))
    spec = pb.TrainSpec(dataset="datasets/text", model="models/watched", size=options.size, steps=10 * options.steps)
    spec.evaluation_interval_steps = 0
    if options.checkpoint_interval is not None:
        spec.checkpoints.interval_steps = options.checkpoint_interval
    return await client.trainer.CreateJob(pb.CreateJobRequest(job=pb.Job(train=spec)))


def _used_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _print(watched: Watched, service_share: float) -> None:
    ranked = sorted(watched.delay_s)
    between_s = watched.last_s - watched.first_s - sum(watched.step_s)
    saving_s = sum(watched.checkpoint_s)
    print(f"steps watched                       {len(ranked)}")
    print(f"step, median                        {statistics.median(watched.step_s) * 1e3:.2f} ms")
    print(f"between steps                       {watched.overhead:.2%} of the time")
    print(f"  of it {len(watched.checkpoint_s)} checkpoints                {saving_s / between_s:.0%}")
    for part, words in ((0.5, "median"), (0.99, "99 %"), (1.0, "largest")):
        delay_s = ranked[min(len(ranked) - 1, int(part * len(ranked)))]
        print(f"from a step to its watcher, {words:<8}{delay_s * 1e3:.0f} ms")
    print(f"service with its watcher            {service_share:.1%} of a core")


if __name__ == "__main__":
    main()
