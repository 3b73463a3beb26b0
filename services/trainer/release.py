"""From a trained model to a bundle that may be registered: files, graphs, proof, lineage, card; made once, then kept.

The record beside the bundle is written last: where it is, the bundle is whole and proven, and a worker that starts
again registers the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from google.protobuf.json_format import MessageToDict

from octavo.formats.bundle import Bundle, write_bundle
from octavo.formats.lineage import DatasetDigest, Lineage
from octavo.formats.model_card import ModelCard
from octavo.v1 import trainer_pb2 as pb
from services.trainer.corpus import Corpus
from services.trainer.job_directory import JobDirectory
from services.trainer.loop import Training
from services.trainer.model import Transformer
from services.trainer.onnx_export import export_graph
from services.trainer.parity import Proof, Reference, prove, record_conformance
from services.trainer.publication import Release

_RECORD: Final = "release.json"
# Real text to probe with, beside the pseudo-random ids of the proof: pieces of the validation part.
_PROBES: Final = 4

Say = Callable[[pb.JobPhase.ValueType, str], None]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the weights come from. `dataset` names a version, `blob` its content."""

    job: str
    dataset: str
    blob: str
    environment: pb.EnvironmentFingerprint


def read_release(directory: JobDirectory) -> Release | None:
    """What an earlier attempt made, if it came so far."""
    path = directory.path / _RECORD
    return Release(**json.loads(path.read_text())) if path.is_file() else None


def make_release(
    directory: JobDirectory,
    training: Training,
    corpus: Corpus,
    *,
    evaluation: pb.Evaluation,
    origin: Origin,
    say: Say,
) -> Release:
    """Write and prove the bundle of the weights that `training` has now. FailedPrecondition when the proof fails.

    `evaluation` is the training's own look at them; the version's figures are those of the exported fp32 weights.
    """
    say(pb.JOB_PHASE_EVALUATE, "measuring the weights in fp32, as they are exported")
    measured = training.evaluate(evaluation.step, dtype=torch.float32)
    measured.training_loss = evaluation.training_loss
    say(pb.JOB_PHASE_EXPORT, "writing the bundle and its graph")
    shutil.rmtree(directory.bundle, ignore_errors=True)
    directory.bundle.mkdir()
    weights = training.weights()
    bundle = write_bundle(
        directory.bundle,
        architecture=training.model.architecture,
        tensors={name: tensor.numpy() for name, tensor in weights.items()},
        tokenizer=corpus.tokenizer,
        dropout=training.spec.dropout,
    )
    export_graph(directory.bundle)
    say(pb.JOB_PHASE_PROVE, "proving the graph equal to the checkpoint")
    texts, threads = _probes(corpus, training), training.spec.threads
    proof = prove(directory.bundle, _reference(training, weights), texts=texts, threads=threads)
    record_conformance(directory.bundle, texts=texts, threads=threads)
    lineage = _lineage(training.spec, evaluation.step, origin)
    metrics = _metrics(measured)
    lineage.write(directory.bundle)
    ModelCard(
        title=training.spec.model.removeprefix("models/"),
        architecture=bundle.architecture,
        tokenizer=corpus.tokenizer,
        lineage=lineage,
        metrics=metrics,
        proof=proof.to_dict(),
    ).write(directory.bundle)
    release = _release(bundle, lineage, metrics, proof, origin)
    _write_record(directory.path / _RECORD, release)
    return release


def _reference(training: Training, weights: dict[str, torch.Tensor]) -> Reference:
    """The checkpoint as a function, in fp32 on the CPU whatever the training computed in."""
    model = Transformer(training.model.architecture)
    model.load_weights(weights)

    def logits(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            found: npt.NDArray[np.float32] = model(torch.from_numpy(ids)[None])[0].float().numpy()
        return found

    return logits


def _probes(corpus: Corpus, training: Training) -> list[list[int]]:
    length = training.model.architecture.context_length
    starts = np.linspace(0, max(0, len(corpus.validation) - length), _PROBES, dtype=np.int64)
    return [corpus.validation[start : start + length].astype(np.int64).tolist() for start in starts.tolist()]


def _lineage(spec: pb.TrainSpec, step: int, origin: Origin) -> Lineage:
    return Lineage(
        specification=MessageToDict(spec, preserving_proto_field_name=True),
        datasets=(DatasetDigest(name=origin.dataset, digest=origin.blob.removeprefix("blobs/")),),
        seed=spec.seed,
        step=step,
        environment=MessageToDict(origin.environment, preserving_proto_field_name=True),
        job=origin.job,
    )


def _metrics(evaluation: pb.Evaluation) -> dict[str, float]:
    return {
        "validation_loss": evaluation.validation_loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte,
        "accuracy": evaluation.accuracy,
        "training_loss": evaluation.training_loss,
    }


def _release(bundle: Bundle, lineage: Lineage, metrics: dict[str, float], proof: Proof, origin: Origin) -> Release:
    registered = {
        "job": origin.job,
        "datasets": [{"dataset": origin.dataset, "blob": origin.blob}],
        "step": str(lineage.step),
        "seed": str(lineage.seed),
        "specification_digest": lineage.specification_digest,
        "code_version": lineage.code_version,
        "environment_fingerprint": lineage.environment_fingerprint,
    }
    return Release(
        job=origin.job,
        bundle=str(bundle.directory),
        family=bundle.architecture.family,
        parameter_count=bundle.architecture.parameters,
        metrics=metrics,
        parity=proof.to_dict(),
        lineage=registered,
    )


def _write_record(path: Path, release: Release) -> None:
    """Everything below the bundle first, then the record: its presence says that the bundle is whole."""
    for file in Path(release.bundle).rglob("*"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as stream:
        json.dump(asdict(release), stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
