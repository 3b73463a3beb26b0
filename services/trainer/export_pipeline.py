"""The phases of an export job, in order; each can be done again, so a worker may be lost at any moment.

Fetch the version, read the text, make and measure each precision, register the new version, deploy it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from google.protobuf.json_format import MessageToDict

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.formats.bundle import Bundle
from octavo.formats.lineage import DatasetDigest, Lineage
from octavo.formats.manifest import FileEntry, Manifest
from octavo.formats.model_card import ModelCard
from octavo.v1 import datasets_pb2, registry_pb2
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.deployments_pb2 import Precision
from octavo.v1.errors_pb2 import Reason
from services.trainer.conversion import Conversion, Quality, record
from services.trainer.corpus import read_text
from services.trainer.environment import fingerprint
from services.trainer.job_run import JobRun
from services.trainer.loop import configure_torch
from services.trainer.publication import Release, registered_lineage
from services.trainer.yardstick import Yardstick

# As much as a train job holds back unless told otherwise.
_VALIDATION_FRACTION: Final = 0.1
# Where in the job the making of precisions begins, and how much of the job it is.
_CONVERTING: Final = (0.2, 0.75)


class ExportPipeline:
    """One export job in one worker."""

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self._spec = run.job.plan.export

    def run(self, attempt: int) -> None:
        """Bring the job from where it is to its end. Raises Leaving, or what ends the job."""
        configure_torch(threads=self._spec.threads)
        environment = fingerprint("cpu", self._spec.threads)
        self._run.begin(attempt, environment)
        version = self._version()
        release = Release.read(self._run.directory) or self._make(version, environment)
        self._run.publish(
            release,
            model=version.name.partition("/versions/")[0],
            message=f"{version.name} with {_made(release)}",
            aliases=self._spec.aliases,
            deployment=self._spec.deployment,
            precision=Precision.Value(f"PRECISION_{self._spec.precisions[0].upper()}"),
        )

    def _version(self) -> registry_pb2.Version:
        self._run.say(pb.JOB_PHASE_PREPARE, f"looking up {self._spec.version}")
        request = registry_pb2.GetVersionRequest(name=self._spec.version)
        return self._run.link.call(lambda client: client.registry.GetVersion(request))

    def _make(self, version: registry_pb2.Version, environment: pb.EnvironmentFingerprint) -> Release:
        bundle = Bundle.open(self._fetch(version))
        dataset = self._run.dataset(self._spec.dataset)
        lineage = _lineage_of(bundle.directory)
        fraction = _held_out_fraction(lineage, self._spec.dataset)
        conversion = Conversion(
            bundle.directory,
            self._yardstick(bundle, dataset, fraction),
            max_increase=self._spec.max_perplexity_increase,
            threads=self._spec.threads,
            say=self._run.say,
            heed=self._run.heed,
        )
        qualities = self._convert(conversion)
        baseline = conversion.baseline
        extended = self._extended_lineage(version, lineage, dataset, fraction, environment)
        extended.write(bundle.directory)
        return self._release(version, bundle, extended, baseline, qualities)

    def _fetch(self, version: registry_pb2.Version) -> Path:
        """The version's files, every byte verified, in a directory that holds nothing else."""
        files = (
            FileEntry(path=file.path, digest=file.blob.removeprefix("blobs/"), size_bytes=file.size_bytes)
            for file in version.files
        )
        # Valid by construction: no path of it leads out of the directory.
        manifest = Manifest(files=tuple(sorted(files, key=lambda entry: entry.path)), tensors={})
        directory = self._run.directory.bundle
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for entry in manifest.files:
            self._run.say(pb.JOB_PHASE_PREPARE, f"fetching {entry.path}")
            path = directory / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            self._run.download(f"blobs/{entry.digest}", path)
        manifest.verify(directory)
        return directory

    def _yardstick(self, bundle: Bundle, dataset: datasets_pb2.Dataset, fraction: float) -> Yardstick:
        path = self._run.directory.path / "text"
        self._run.say(pb.JOB_PHASE_PREPARE, "fetching the text")
        self._run.download(dataset.blob, path)
        text = read_text(path)
        self._run.say(pb.JOB_PHASE_PREPARE, "turning the text into tokens")
        return Yardstick.of_text(bundle.architecture, bundle.tokenizer, text, fraction)

    def _convert(self, conversion: Conversion) -> list[Quality]:
        """All precisions; FailedPrecondition with the figures of every one that is not good enough."""
        qualities, lost = [], []
        for index, precision in enumerate(self._spec.precisions):
            self._run.progress.advance(_CONVERTING[0] + _CONVERTING[1] * index / len(self._spec.precisions))
            try:
                quality = conversion.make(precision)
            except FailedPrecondition as error:
                if error.reason != Reason.REASON_QUALITY_LOST:
                    raise
                lost.append(error)
                continue
            self._run.log.log(pb.LOG_SEVERITY_INFO, quality.words)
            qualities.append(quality)
        if lost:
            refusal = FailedPrecondition(Reason.REASON_QUALITY_LOST, "; ".join(one.message for one in lost))
            refusal.metadata = lost[0].metadata
            raise refusal
        return qualities

    def _extended_lineage(
        self,
        version: registry_pb2.Version,
        lineage: Lineage | None,
        dataset: datasets_pb2.Dataset,
        fraction: float,
        environment: pb.EnvironmentFingerprint,
    ) -> Lineage:
        """What the weights were trained from stays said; the job, its spec and the parent are this one's."""
        used = DatasetDigest(name=self._spec.dataset, digest=dataset.blob.removeprefix("blobs/"))
        before = lineage.datasets if lineage else ()
        return Lineage(
            # The fraction is not asked for but follows from the training; an export of this version needs it again.
            specification=MessageToDict(self._spec, preserving_proto_field_name=True)
            | {"validation_fraction": fraction},
            datasets=(*before, *(() if used in before else (used,))),
            seed=version.lineage.seed,
            step=version.lineage.step,
            environment=MessageToDict(environment, preserving_proto_field_name=True),
            job=self._run.job.name,
            parent_version=version.name,
        )

    def _release(
        self,
        version: registry_pb2.Version,
        bundle: Bundle,
        lineage: Lineage,
        baseline: pb.Evaluation,
        qualities: list[Quality],
    ) -> Release:
        metrics = dict(version.metrics) | {name: value for one in qualities for name, value in one.metrics.items()}
        parity = MessageToDict(version.parity) if version.HasField("parity") else {}
        parity["precisions"] = parity.get("precisions", {}) | record(bundle.directory, baseline, qualities)
        ModelCard(
            title=version.name.partition("/versions/")[0].removeprefix("models/"),
            architecture=bundle.architecture,
            tokenizer=bundle.tokenizer,
            lineage=lineage,
            metrics=metrics,
            proof=parity,
        ).write(bundle.directory)
        release = Release(
            job=self._run.job.name,
            bundle=str(bundle.directory),
            family=bundle.architecture.family,
            parameter_count=bundle.architecture.parameters,
            metrics=metrics,
            parity=parity,
            lineage=registered_lineage(lineage),
        )
        release.write(self._run.directory)
        return release


def _made(release: Release) -> str:
    """The precisions of a release in words, each with what it loses."""
    parts = []
    for precision, found in release.parity["precisions"].items():
        loss = f"{found['perplexity_increase']:+.2%} perplexity" if found["is_measured"] else "not measured here"
        parts.append(f"{precision} ({loss})")
    return ", ".join(parts)


def _lineage_of(bundle: Path) -> Lineage | None:
    """What the version says of its origin; None where it was not made here and says nothing that can be read."""
    try:
        return Lineage.read(bundle)
    except (InvalidArgument, OSError):
        return None


def _held_out_fraction(lineage: Lineage | None, dataset: str) -> float:
    """The last part of the text, which training held back, if this is the text of the training."""
    if lineage is None or dataset not in {one.name for one in lineage.datasets}:
        return _VALIDATION_FRACTION
    fraction = lineage.specification.get("validation_fraction", _VALIDATION_FRACTION)
    return float(fraction)
