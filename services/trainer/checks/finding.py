"""What a check is and what it finds: the field, why its value will not do, and a change of the spec that would.

A check is a small function under a decorator that names its field and says what it is for; the reference page of all
checks and the tests that trigger each of them come from the same table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from google.protobuf.json_format import ParseDict

from octavo.formats.architecture import Architecture
from octavo.v1 import trainer_pb2 as pb
from services.trainer.machine import Machine
from services.trainer.surroundings import Surroundings
from services.trainer.text_facts import TextFacts
from services.trainer.times import Times

Value: TypeAlias = int | float | bool | str | list[str] | None
Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Finding:
    """Why a value will not do, and the fix: a `change` of the spec by path, where None leaves the field out.

    `advice` is what a person could do instead, or has to where no change is given. `field` counts where it is not
    the check's own, such as `aliases[1]`.
    """

    why: str
    change: Mapping[str, Value] = field(default_factory=dict)
    advice: str = ""
    field: str = ""

    @property
    def fix(self) -> str:
        """The change and the advice as a sentence."""
        steps = [f"leave {path} out" if _is_unset(to) else f"set {path} to {shown(to)}" for path, to in _items(self)]
        return ", or ".join(part for part in (" and ".join(steps), self.advice) if part)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A spec as it was asked, what it came to, and all that is known when it is planned."""

    asked: pb.TrainSpec
    plan: pb.Plan
    shape: Architecture
    text: TextFacts
    machine: Machine
    around: Surroundings
    times: Times

    @property
    def spec(self) -> pb.TrainSpec:
        """The resolved spec."""
        return self.plan.train

    @property
    def training_s(self) -> float:
        """Expected time of all optimizer steps together."""
        return self.plan.total_steps * self.times.step_s

    @property
    def looks(self) -> int:
        """How often the run is evaluated, its end included."""
        interval = self.spec.evaluation_interval_steps
        return 1 + (self.plan.total_steps - 1) // interval if interval else 1

    def has(self, path: str) -> bool:
        """Whether a field was set by whoever asked."""
        return value_of(self.asked, path) is not None


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """A named question about a subject. An error ends the plan; anything else is a warning in it."""

    name: str
    field: str
    meaning: str
    is_error: bool
    find: Callable[[Subject], Finding | None]


Finder: TypeAlias = Callable[[Subject], Finding | None]


def fault(path: str, meaning: str) -> Callable[[Finder[pb.TrainSpec]], Check[pb.TrainSpec]]:
    """An error that the spec alone shows."""
    return lambda find: Check(find.__name__, path, meaning, True, find)


def obstacle(path: str, meaning: str) -> Callable[[Finder[Case]], Check[Case]]:
    """An error that shows once the spec is resolved against text and machine."""
    return lambda find: Check(find.__name__, path, meaning, True, find)


def warning(path: str, meaning: str) -> Callable[[Finder[Case]], Check[Case]]:
    """Possible, but likely to disappoint."""
    return lambda find: Check(find.__name__, path, meaning, False, find)


def within(path: str, least: float, most: float, hint: str) -> Check[pb.TrainSpec]:
    """A number from `least` to `most`; the fix is the nearest that is, or to have it derived."""

    def find(spec: pb.TrainSpec) -> Finding | None:
        value = value_of(spec, path)
        if not isinstance(value, (int, float)) or (math.isfinite(value) and least <= value <= most):
            return None
        nearest = type(value)(min(most, max(least, value))) if math.isfinite(value) else None
        return Finding(f"{value:g} is not from {least:g} to {most:g}", {path: nearest}, hint)

    return Check(f"{path.replace('.', '_')}_range", path, f"From {least:g} to {most:g}.", True, find)


def below_one(path: str, usual: float, hint: str) -> Check[pb.TrainSpec]:
    """A fraction from 0 to below 1."""

    def find(spec: pb.TrainSpec) -> Finding | None:
        value = value_of(spec, path)
        if not isinstance(value, float) or 0 <= value < 1:
            return None
        return Finding(f"{value:g} is not from 0 to below 1", {path: usual}, hint)

    return Check(f"{path.replace('.', '_')}_range", path, "From 0 to below 1.", True, find)


def value_of(spec: pb.TrainSpec, path: str) -> object:
    """The value at a path; None where it is not set, or is the empty value of a field without presence."""
    at: object = spec
    for name in path.split("."):
        message, descriptor = at, at.DESCRIPTOR.fields_by_name[name]  # type: ignore[attr-defined]
        if descriptor.has_presence and not message.HasField(name):  # type: ignore[attr-defined]
            return None
        at = getattr(message, name)
        if not descriptor.has_presence and not at:
            return None
    return at


def changed(spec: pb.TrainSpec, change: Mapping[str, Value]) -> pb.TrainSpec:
    """The spec with a finding's change applied."""
    result = pb.TrainSpec()
    result.CopyFrom(spec)
    for path, value in change.items():
        *above, name = path.split(".")
        message: object = result
        for part in above:
            message = getattr(message, part)
        message.ClearField(name)  # type: ignore[attr-defined]
        if value is not None:
            ParseDict({name: value}, message)  # type: ignore[type-var]
    return result


def shown(value: Value) -> str:
    """A value as a person writes it: enum values without their prefix."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(value) or "nothing"
    if isinstance(value, str):
        return re.sub(r"^(TOKENIZER_KIND|TRAINING_PRECISION|MODEL_FAMILY)_", "", value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def tidy(value: float) -> float:
    """Two significant digits."""
    return float(f"{value:.2g}")


def _is_unset(value: Value) -> bool:
    return value is None or value == []


def _items(finding: Finding) -> list[tuple[str, Value]]:
    return list(finding.change.items())
