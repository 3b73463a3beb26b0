"""All checks of a train spec, in the order in which their findings are told, and how they are asked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Final

from octavo.v1 import trainer_pb2 as pb
from services.trainer.checks import (
    architecture,
    batch,
    checkpoints,
    device,
    evaluation,
    fine_tuning,
    names,
    optimizer,
    processes,
    sample,
    schedule,
    stop,
    text,
    tokenizer,
)
from services.trainer.checks.finding import Case, Check, Finding, Subject, changed

NOUNS: Final[Sequence[ModuleType]] = (
    device,
    text,
    stop,
    architecture,
    batch,
    processes,
    tokenizer,
    evaluation,
    optimizer,
    schedule,
    checkpoints,
    sample,
    fine_tuning,
    names,
)
NAMED: Final[tuple[Check[pb.TrainSpec], ...]] = names.ASKED
"""What the names in a spec show."""
NUMBERED: Final[tuple[Check[pb.TrainSpec], ...]] = tuple(
    one for noun in NOUNS if noun is not names for one in getattr(noun, "ASKED", ())
)
"""What its numbers show."""
SHAPED: Final[tuple[Check[pb.TrainSpec], ...]] = architecture.SHAPED
"""What shows once the shape is filled in."""
PLANNED: Final[tuple[Check[Case], ...]] = tuple(one for noun in NOUNS for one in noun.PLANNED)
"""What shows in the plan."""


def found(checks: Iterable[Check[Subject]], subject: Subject) -> Iterator[tuple[Check[Subject], Finding]]:
    """The findings of those checks that have one."""
    for check in checks:
        finding = check.find(subject)
        if finding is not None:
            yield check, finding


def faults(checks: Iterable[Check[Subject]], subject: Subject) -> tuple[dict[str, str], dict[str, object]]:
    """What is wrong by field below the spec, as a sentence with its fix; and the changes that would put it right."""
    wrong: dict[str, str] = {}
    change: dict[str, object] = {}
    for check, finding in found(checks, subject):
        field = finding.field or check.field
        told = f"{finding.why}; {finding.fix}" if finding.fix else finding.why
        wrong[field] = f"{wrong[field]}. Also: {told}" if field in wrong else told
        change |= finding.change
    return wrong, change


def mended(spec: pb.TrainSpec, change: Mapping[str, object]) -> pb.TrainSpec:
    """The spec with changes applied, so that what depends on what was wrong can be asked too."""
    return changed(spec, change)  # type: ignore[arg-type]


def warnings(case: Case) -> list[pb.PlanWarning]:
    """What is possible and may disappoint."""
    return [
        pb.PlanWarning(
            field=f"train.{finding.field or check.field}",
            description=finding.why,
            fix=finding.fix,
            check=check.name,
            change={
                f"train.{path}": "" if value is None else json.dumps(value) for path, value in finding.change.items()
            },
        )
        for check, finding in found((one for one in PLANNED if not one.is_error), case)
    ]
