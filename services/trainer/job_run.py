"""What a worker has at hand whatever its job: events, commands, progress, the registry; and how every job ends.

Knows nothing of what the job makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from octavo.errors import NotFound
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.deployments_pb2 import Precision
from services.trainer import publication
from services.trainer.control import Control
from services.trainer.corpus_cache import CorpusCache
from services.trainer.events import EventLog
from services.trainer.job_directory import JobDirectory
from services.trainer.progress import ProgressReporter
from services.trainer.registry_link import RegistryLink


class JobRun:
    """One attempt at one job. `job` is as its events, `past`, leave it; `step` is the last one that is done."""

    def __init__(
        self, directory: JobDirectory, job: pb.Job, past: Sequence[pb.JobEvent], log: EventLog, control: Control
    ) -> None:
        self.directory = directory
        self.job = job
        self.past = past
        self.log = log
        self.control = control
        self.step = job.progress.step
        self.progress = ProgressReporter(log, job.WhichOneof("spec") or "train")
        self.link = RegistryLink(directory, log, self.heed)

    def begin(
        self, attempt: int, environment: pb.EnvironmentFingerprint, *, step: int = 0, damages: Sequence[str] = ()
    ) -> None:
        """Say where this attempt begins, what of the last one is damaged, and whether it computes in another place."""
        start = pb.AttemptStart(attempt=attempt, step=step, environment=environment, damaged_checkpoints=damages)
        self.log.append(pb.JobEvent(attempt_start=start))
        for damage in damages:
            self.log.log(pb.LOG_SEVERITY_WARNING, f"{damage}; going on from step {step}", step)
        before = self.job.environment.digest
        if before and before != environment.digest:
            self.log.log(
                pb.LOG_SEVERITY_WARNING,
                "this environment is not the one in which the job began; from here on the weights may differ in "
                "their last bits from those of an unbroken run",
                step,
            )

    def past_plan(self) -> pb.Plan | None:
        """The plan that an earlier attempt fixed."""
        return next((event.plan for event in reversed(self.past) if event.HasField("plan")), None)

    def heed(self) -> None:
        """Apply the commands that came in; raises Leaving where the worker has to stop."""
        # A command that changes the numbers takes effect after all steps that were done without it.
        self.control.heed(self.step)

    def say(self, phase: pb.JobPhase.ValueType, message: str) -> None:
        """A phase begins, or another part of it, if nothing was commanded meanwhile."""
        self.heed()
        self.progress.phase(phase, message)

    def warn(self, message: str) -> None:
        """A line of the log that people should see."""
        self.log.log(pb.LOG_SEVERITY_WARNING, message, self.step)

    def dataset(self, name: str) -> datasets_pb2.Dataset:
        """What the registry knows of a dataset, or knew: a job that has begun goes on when its dataset is deleted."""
        known = self.directory.read_dataset()
        if known is not None and known.name == name:
            return known
        self.say(pb.JOB_PHASE_PREPARE, f"looking up {name}")
        request = datasets_pb2.GetDatasetRequest(name=name)
        try:
            dataset = self.link.call(lambda client: client.datasets.GetDataset(request))
        except NotFound as error:
            raise NotFound(
                error.reason,
                f"{name} was deleted before the job began; create the job again with a dataset that there is",
                dataset=name,
            ) from error
        dataset.name = name
        self.directory.write_dataset(dataset)
        return dataset

    def download(self, blob: str, path: Path) -> None:
        """Fetch a blob to a path, verified."""
        self.link.call(lambda client: client.download(blob, path))

    @property
    def peaks(self) -> Path:
        """The file of what this trainer's machine was measured to reach."""
        return Path(self.directory.read_launch().corpora).parent / "peak_flops.json"

    @property
    def corpora(self) -> CorpusCache:
        """The corpora of this trainer."""
        launch = self.directory.read_launch()
        return CorpusCache(Path(launch.corpora), launch.corpora_limit_bytes)

    def publish(
        self,
        release: publication.Release,
        *,
        model: str,
        message: str,
        aliases: Sequence[str],
        deployment: str,
        precision: Precision.ValueType = Precision.PRECISION_UNSPECIFIED,
    ) -> None:
        """Register a release, move its aliases, have it served; each step again changes nothing."""
        self.say(pb.JOB_PHASE_REGISTER, f"registering a version of {model}")
        request_id = publication.request_id_of(self.job, "version")
        version = publication.register(self.link, model, release, request_id, self.heed)
        self._output(version.name, message)
        for alias in aliases:
            reference = publication.set_alias(self.link, version, alias)
            self.log.log(pb.LOG_SEVERITY_INFO, f"{reference} is now {version.name}", self.step)
        if deployment:
            self.say(pb.JOB_PHASE_DEPLOY, f"asking for {version.name} to be served as {deployment}")
            self._output(publication.deploy(self.link, version, deployment, precision), f"serves {version.name}")

    def close(self) -> None:
        """Let go of the registry."""
        self.link.close()

    def _output(self, name: str, message: str) -> None:
        if not any(event.output.name == name for event in self.past):
            self.log.append(pb.JobEvent(output=pb.JobOutput(name=name, message=message)))
