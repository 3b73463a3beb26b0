"""A diagnosis shows its rung, its figures and the settings that it advises."""

import io

from rich.console import Console

from octavo.cli.diagnosis_view import diagnosis_view
from octavo.v1 import trainer_pb2 as pb


def shown(diagnosis):
    console = Console(width=100, file=io.StringIO())
    console.print(diagnosis_view(diagnosis))
    return console.file.getvalue()


def test_a_diagnosis_shows_readiness_then_each_finding_with_its_settings():
    diagnosis = pb.Diagnosis(verdict=pb.DIAGNOSIS_VERDICT_UNSTABLE)
    diagnosis.readiness.level = pb.READINESS_LEVEL_TRAIN_LONGER
    diagnosis.readiness.evidence.extend(["4.1 bits per byte at step 90", "memory is stable"])
    diagnosis.readiness.advice = "train longer"
    diagnosis.findings.add(
        verdict=pb.DIAGNOSIS_VERDICT_UNSTABLE,
        evidence="step 60 had the loss nan",
        advice="halve the rates",
        settings={"optimizer.learning_rate": "0.002"},
    )
    text = shown(diagnosis)
    for words in ("train longer", "4.1 bits", "memory is stable", "unstable", "the loss nan", "halve the rates"):
        assert words in text
    assert "--set optimizer.learning_rate=0.002" in text
    assert text.index("readiness") < text.index("unstable")


def test_too_little_is_said_to_be_too_little():
    assert "too few steps" in shown(pb.Diagnosis())
