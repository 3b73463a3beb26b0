"""Checks the installed software and the machine against what the suite needs, and what one artifact needs.

What is needed is read from the distribution's own metadata, so that nothing is said twice.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Final

from octavo.v1 import inspector_pb2 as pb

Outcome = pb.CheckOutcome

_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)(?:>=([0-9.]+))?[^;]*(?:;.*extra == [\"'](\w+)[\"'])?")
# Extras that are programs of the suite; the others are for its developers, or choose one of two builds.
_PROGRAMS: Final = ("registry", "trainer", "inference", "inspector", "gateway")
_DISTRIBUTION: Final = "octavo"
_RANK: Final = {Outcome.CHECK_OUTCOME_FAILED: 0, Outcome.CHECK_OUTCOME_WARNED: 1, Outcome.CHECK_OUTCOME_PASSED: 2}


def check_software() -> Iterator[pb.EnvironmentCheck]:
    """Python and every package that a program of the suite needs, by the metadata of this distribution."""
    if not _installed(_DISTRIBUTION):
        yield _versioned(_DISTRIBUTION, "", "", program="")
        return
    wanted = metadata.metadata(_DISTRIBUTION)["Requires-Python"].removeprefix(">=")
    yield _versioned("python", platform.python_version(), wanted, program="")
    seen = set()
    for text in metadata.requires(_DISTRIBUTION) or []:
        match = _REQUIREMENT.match(text)
        if match and (match[3] is None or match[3] in _PROGRAMS) and match[1] not in seen:
            seen.add(match[1])
            yield _versioned(match[1], _installed(match[1]), match[2] or "", program=match[3] or "")


def check_machine(diagnosis: pb.SystemDiagnosis) -> Iterator[pb.EnvironmentCheck]:
    """The machine, by what its diagnosis found wrong with each part of it."""
    available = f"{diagnosis.memory.available_bytes / 2**30:.2f} GiB free"
    cores = f"{diagnosis.processor.usable_core_count:g} cores with {', '.join(diagnosis.processor.features)}"
    parts = [
        ("processor", "processor", cores, "AVX2 or ASIMD"),
        ("memory", "memory", available, "1 GiB free"),
        ("limits", "limits", f"{diagnosis.limits.open_files or 'unlimited'} open files", "1024 open files"),
        ("onnxruntime", "onnxruntime", ", ".join(diagnosis.execution_providers), "an execution provider"),
        *(
            (
                f"storage-{storage.purpose}",
                f"storage: {storage.path}",
                f"{storage.available_bytes / 2**30:.2f} GiB free",
                "1 GiB free, writable",
            )
            for storage in diagnosis.storage
        ),
    ]
    for code, subject, found, required in parts:
        notes = [finding for finding in diagnosis.findings if finding.subject == subject]
        yield _judged(code, notes, found, required)


def check_registry(*, is_reachable: bool, address: str) -> pb.EnvironmentCheck:
    """Whether the registry answers."""
    return pb.EnvironmentCheck(
        code="registry",
        outcome=Outcome.CHECK_OUTCOME_PASSED if is_reachable else Outcome.CHECK_OUTCOME_FAILED,
        found=f"{address} {'answers' if is_reachable else 'does not answer'}",
        required="a registry that answers",
        advice="" if is_reachable else "start the registry, or set OCTAVO_REGISTRY to its address",
    )


def check_artifact(
    inspection: pb.ArtifactInspection, memory: pb.MemoryEstimate | None
) -> Iterator[pb.EnvironmentCheck]:
    """Whether an artifact is sound, can be served, and fits; `memory` is None when its needs are unknown."""
    severe = [note for note in inspection.findings if note.severity > pb.FINDING_SEVERITY_INFO]
    yield _judged("artifact", severe, f"{len(inspection.files)} files", "files without defects")
    graphs = [file.path for file in inspection.files if file.format == pb.FILE_FORMAT_ONNX]
    yield pb.EnvironmentCheck(
        code="artifact-graph",
        outcome=Outcome.CHECK_OUTCOME_PASSED if graphs else Outcome.CHECK_OUTCOME_FAILED,
        found=", ".join(graphs) or "no ONNX file",
        required="an ONNX file to serve",
        advice="" if graphs else "export the model",
    )
    if memory is not None:
        notes = [note for note in memory.findings if note.subject == "serving"]
        required = f"{memory.serving_bytes / 2**30:.2f} GiB to serve one sequence"
        yield _judged("artifact-memory", notes, f"{memory.available_bytes / 2**30:.2f} GiB free", required)


def validation(checks: Sequence[pb.EnvironmentCheck]) -> pb.EnvironmentValidation:
    """The checks, failed ones first, and whether none failed."""
    ordered = sorted(checks, key=lambda check: _RANK[check.outcome])
    result = pb.EnvironmentValidation(
        is_valid=all(check.outcome != Outcome.CHECK_OUTCOME_FAILED for check in checks), checks=ordered
    )
    result.measure_time.GetCurrentTime()
    return result


def _versioned(name: str, found: str, required: str, *, program: str) -> pb.EnvironmentCheck:
    """A check of a version. A program that is not installed is no failure: it may run elsewhere."""
    extra = f"octavo[{program}]" if program else "octavo"
    if not found:
        outcome = Outcome.CHECK_OUTCOME_WARNED if program else Outcome.CHECK_OUTCOME_FAILED
    elif _numbers(found) >= _numbers(required):
        outcome = Outcome.CHECK_OUTCOME_PASSED
    else:
        outcome = Outcome.CHECK_OUTCOME_FAILED
    passed = outcome == Outcome.CHECK_OUTCOME_PASSED
    return pb.EnvironmentCheck(
        code=f"{name}-version",
        outcome=outcome,
        found=found or "not installed",
        required=f"{required} or newer" if required else "any version",
        advice="" if passed else f"pip install --upgrade '{extra}'",
    )


def _judged(code: str, notes: Sequence[pb.InspectionFinding], found: str, required: str) -> pb.EnvironmentCheck:
    """A check that the worst of some findings decides."""
    worst = max(notes, key=lambda note: note.severity, default=None)
    outcome = Outcome.CHECK_OUTCOME_PASSED
    if worst is not None and worst.severity == pb.FINDING_SEVERITY_ERROR:
        outcome = Outcome.CHECK_OUTCOME_FAILED
    elif worst is not None and worst.severity == pb.FINDING_SEVERITY_WARNING:
        outcome = Outcome.CHECK_OUTCOME_WARNED
    if worst is None or outcome == Outcome.CHECK_OUTCOME_PASSED:
        return pb.EnvironmentCheck(code=code, outcome=outcome, found=found, required=required)
    return pb.EnvironmentCheck(code=code, outcome=outcome, found=worst.message, required=required, advice=worst.advice)


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers a version begins with: 1.2.3rc1 gives 1, 2, 3."""
    return tuple(int(part) for part in re.findall(r"(?:^|\.)(\d+)", version))
