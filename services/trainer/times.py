"""How long the parts of a train job take, in seconds: what plans are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Times:
    """Of one optimizer step, one evaluation, one sample, one checkpoint; and once: until training begins, and after.

    `calibration_s` is what measuring a time budget takes, 0 without one.
    """

    step_s: float
    evaluation_s: float = 0.0
    sample_s: float = 0.0
    save_s: float = 0.0
    setup_s: float = 0.0
    calibration_s: float = 0.0
    release_s: float = 0.0

    @property
    def look_s(self) -> float:
        """An evaluation with its sample."""
        return self.evaluation_s + self.sample_s
