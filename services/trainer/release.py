"""From a trained model to a bundle that may be registered: files, graphs, proof, lineage, card; made once, then kept.

The record beside the bundle is written last: where it is, the bundle is whole and proven, and a worker that starts
again registers the same bytes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from google.protobuf.json_format import MessageToDict

from octavo.errors import FailedPrecondition
from octavo.formats.bundle import write_bundle
from octavo.formats.lineage import DatasetDigest, Lineage
from octavo.formats.model_card import ModelCard
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.conversion import Conversion, record
from services.trainer.corpus import Corpus
from services.trainer.job_run import JobRun
from services.trainer.loop import Training
from services.trainer.model import Transformer
from services.trainer.onnx_export import export_graph
from services.trainer.parity import Reference, prove, record_conformance
from services.trainer.publication import Release, registered_lineage
from services.trainer.yardstick import MAX_PERPLEXITY_INCREASE, Yardstick

# Real text to probe with, beside the pseudo-random ids of the proof: pieces of the validation part.
_PROBES: Final = 4


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the weights come from. `dataset` names a version, `blob` its content."""

    job: str
    dataset: str
    blob: str
    environment: pb.EnvironmentFingerprint


def make_release(
    run: JobRun,
    training: Training,
    corpus: Corpus,
    *,
    evaluation: pb.Evaluation,
    origin: Origin,
) -> Release:
    """Write and prove the bundle of the weights that `training` has now. FailedPrecondition when the proof fails.

    `evaluation` is the training's own look at them; the version's figures are those of the exported fp32 weights.
    """
    run.say(pb.JOB_PHASE_EVALUATE, "measuring the weights in fp32, as they are exported")
    measured = training.evaluate(evaluation.step, dtype=torch.float32)
    measured.training_loss = evaluation.training_loss
    run.say(pb.JOB_PHASE_EXPORT, "writing the bundle and its graph")
    directory = run.directory.bundle
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    weights = training.weights()
    bundle = write_bundle(
        directory,
        architecture=training.model.architecture,
        tensors={name: tensor.numpy() for name, tensor in weights.items()},
        tokenizer=corpus.tokenizer,
        dropout=training.spec.dropout,
    )
    export_graph(directory)
    run.say(pb.JOB_PHASE_PROVE, "proving the graph equal to the checkpoint")
    texts, threads = _probes(corpus, training), training.spec.threads
    proof = prove(directory, _reference(training, weights), texts=texts, threads=threads).to_dict()
    record_conformance(directory, texts=texts, threads=threads)
    metrics = _metrics(measured)
    _convert(run, training, corpus, metrics, proof)
    lineage = _lineage(training.spec, evaluation.step, origin)
    lineage.write(directory)
    ModelCard(
        title=training.spec.model.removeprefix("models/"),
        architecture=bundle.architecture,
        tokenizer=corpus.tokenizer,
        lineage=lineage,
        metrics=metrics,
        proof=proof,
    ).write(directory)
    release = Release(
        job=origin.job,
        bundle=str(directory),
        family=bundle.architecture.family,
        parameter_count=bundle.architecture.parameters,
        metrics=metrics,
        parity=proof,
        lineage=registered_lineage(lineage),
    )
    release.write(run.directory)
    return release


def _convert(run: JobRun, training: Training, corpus: Corpus, metrics: dict[str, float], proof: dict[str, Any]) -> None:
    """The other precisions that were asked for, into the same bundle; one that is not good enough is left out."""
    wanted = [word for word in dict.fromkeys(training.spec.export_precisions) if word != "fp32"]
    if not wanted:
        return
    a = training.model.architecture
    conversion = Conversion(
        run.directory.bundle,
        Yardstick.of_tokens(a, corpus.tokenizer, corpus.train, corpus.validation),
        max_increase=MAX_PERPLEXITY_INCREASE,
        threads=training.spec.threads,
        say=run.say,
        heed=run.heed,
    )
    made = []
    for precision in wanted:
        try:
            made.append(conversion.make(precision))
        except FailedPrecondition as error:
            if error.reason != Reason.REASON_QUALITY_LOST:
                raise
            run.warn(f"{precision} is left out: {error.message}")
    for quality in made:
        run.log.log(pb.LOG_SEVERITY_INFO, quality.words)
        metrics |= quality.metrics
    if made:
        proof["precisions"] = record(run.directory.bundle, conversion.baseline, made)


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
    } | ({"exact_match": evaluation.exact_match} if evaluation.HasField("exact_match") else {})
