"""A diagnosis as one reads it: the rung of the ladder, then each finding with its figures and what to change."""

from rich.console import Group, RenderableType
from rich.text import Text

from octavo.cli import screen, wording
from octavo.v1 import trainer_pb2 as pb

_GOOD = {
    pb.DIAGNOSIS_VERDICT_LEARNING,
    pb.DIAGNOSIS_VERDICT_READY,
    pb.DIAGNOSIS_VERDICT_DEPLOY,
}
_MILD = {
    pb.DIAGNOSIS_VERDICT_TRAIN_LONGER,
    pb.DIAGNOSIS_VERDICT_PLATEAU,
    pb.DIAGNOSIS_VERDICT_LOSS_SPIKES,
    pb.DIAGNOSIS_VERDICT_OUT_OF_MEMORY,
}
_LEVEL_STYLES = {
    pb.READINESS_LEVEL_NOT_READY: "bold red",
    pb.READINESS_LEVEL_TRAIN_LONGER: "bold yellow",
    pb.READINESS_LEVEL_READY: "bold green",
    pb.READINESS_LEVEL_DEPLOY: "bold green",
}


def diagnosis_view(diagnosis: pb.Diagnosis) -> RenderableType:
    """All of it, below one another."""
    if not diagnosis.findings and not diagnosis.HasField("readiness"):
        return Text("too few steps to say; ask again in a moment", style="dim")
    parts: list[RenderableType] = []
    if diagnosis.HasField("readiness"):
        parts += [_readiness(diagnosis.readiness), Text("")]
    for finding in diagnosis.findings:
        parts += [_finding(finding), Text("")]
    return Group(*parts[:-1])


def _readiness(readiness: pb.Readiness) -> RenderableType:
    word = wording.enum_word(pb.ReadinessLevel.Name(readiness.level), "READINESS_LEVEL_")
    facts: list[tuple[str, screen.Cell]] = [("readiness", Text(word, style=_LEVEL_STYLES.get(readiness.level, "bold")))]
    facts += [("evidence" if number == 0 else " ", sentence) for number, sentence in enumerate(readiness.evidence)]
    return screen.facts_grid([*facts, ("advice", readiness.advice)])


def _finding(finding: pb.DiagnosisFinding) -> RenderableType:
    word = wording.enum_word(pb.DiagnosisVerdict.Name(finding.verdict), "DIAGNOSIS_VERDICT_")
    style = "bold green" if finding.verdict in _GOOD else "bold yellow" if finding.verdict in _MILD else "bold red"
    settings = "  ".join(f"--set {path}={value}" for path, value in sorted(finding.settings.items()))
    return screen.facts_grid(
        [
            ("verdict", Text(word, style=style)),
            ("evidence", finding.evidence),
            ("advice", finding.advice),
            ("settings", Text(settings, style="dim")),
        ]
    )
