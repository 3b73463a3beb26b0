"""The learning rate's shape over the steps: pure functions of the step, so that a resumed run repeats them exactly."""

from __future__ import annotations

# Steps over which Muon's momentum rises to its final value (modded-nanogpt: 0.85 to 0.95).
_MOMENTUM_WARMUP_STEPS = 200
_FIRST_MOMENTUM = 0.85


def learning_rate_scale(
    step: int, *, total_steps: int, warmup_steps: int, cooldown_fraction: float, final_fraction: float
) -> float:
    """Part of the peak rate that optimizer step `step` (from 1) uses: warm-up, plateau, linear cool-down.

    The last step uses just above `final_fraction`; steps past the end stay at `final_fraction`.
    """
    cooldown_steps = cooldown_fraction * total_steps
    remaining = max(0, total_steps - step + 1)
    falling = 1.0 if cooldown_steps <= 0 else min(1.0, remaining / cooldown_steps)
    rising = 1.0 if warmup_steps <= 0 else min(1.0, step / warmup_steps)
    return rising * (final_fraction + (1.0 - final_fraction) * falling)


def momentum(step: int, *, peak: float) -> float:
    """Muon's momentum at optimizer step `step` (from 1): low at first, while the gradient still turns quickly."""
    first = min(_FIRST_MOMENTUM, peak)
    return first + (peak - first) * min(1.0, (step - 1) / _MOMENTUM_WARMUP_STEPS)
