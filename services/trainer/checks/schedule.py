"""The learning rate over the steps."""

from __future__ import annotations

import math

from services.trainer.checks.finding import Case, Finding, warning, within


@warning("schedule.warmup_steps", "The warm-up ends before the run.")
def warmup_beyond_end(case: Case) -> Finding | None:
    warmup, steps = case.spec.schedule.warmup_steps, case.plan.total_steps
    if not case.has("schedule.warmup_steps") or warmup < steps:
        return None
    why = f"{warmup} steps of warm-up in {steps}: the learning rate never gets to its peak"
    return Finding(why, {"schedule.warmup_steps": min(10, steps // 10)}, "train longer")


@warning("schedule.warmup_steps", "The warm-up is a small part of the run.")
def warmup_long(case: Case) -> Finding | None:
    warmup, steps = case.spec.schedule.warmup_steps, case.plan.total_steps
    if not case.has("schedule.warmup_steps") or not steps / 4 < warmup < steps:
        return None
    why = f"{warmup} of {steps} steps are spent below the peak of the learning rate"
    return Finding(why, {"schedule.warmup_steps": steps // 10})


@warning("schedule.warmup_steps", "The first steps are small ones.")
def cold_start(case: Case) -> Finding | None:
    if not case.has("schedule.warmup_steps") or case.spec.schedule.warmup_steps or case.plan.total_steps < 100:
        return None
    why = "0 lets random weights take steps of the full rate, before any moment is known"
    return Finding(why, {"schedule.warmup_steps": 10})


@warning("schedule.cooldown_fraction", "Warm-up and cool-down do not overlap.")
def cooldown_meets_warmup(case: Case) -> Finding | None:
    schedule, steps = case.spec.schedule, case.plan.total_steps
    asked = case.has("schedule.warmup_steps") or case.has("schedule.cooldown_fraction")
    room = 1 - schedule.warmup_steps / steps
    if not asked or room <= 0 or schedule.cooldown_fraction <= room:
        return None
    why = (
        f"the rate falls over the last {schedule.cooldown_fraction:.0%} of the steps and rises over the first "
        f"{schedule.warmup_steps}: it never gets to its peak"
    )
    return Finding(why, {"schedule.cooldown_fraction": math.floor(room * 100) / 100})


@warning("schedule.cooldown_fraction", "The rate falls before the end: most of the loss is won then.")
def no_cooldown(case: Case) -> Finding | None:
    schedule = case.spec.schedule
    if not case.has("schedule.cooldown_fraction") or schedule.cooldown_fraction >= 0.1:
        return None
    why = f"{schedule.cooldown_fraction:g} leaves the rate at its peak nearly to the end: the last weights are noisy"
    room = math.floor((1 - schedule.warmup_steps / case.plan.total_steps) * 100) / 100
    return Finding(why, {"schedule.cooldown_fraction": max(0.1, min(0.6, room))})


@warning("schedule.final_fraction", "The rate falls to a small part of its peak.")
def final_rate_high(case: Case) -> Finding | None:
    final = case.spec.schedule.final_fraction
    if final <= 0.5:
        return None
    return Finding(
        f"the rate still is {final:.0%} of its peak at the end: the last weights are noisy",
        {"schedule.final_fraction": 0.0},
    )


ASKED = (
    within("schedule.warmup_steps", 0, 1 << 40, "10 to 1000 is usual"),
    within("schedule.cooldown_fraction", 0, 1, "0.6 is usual"),
    within("schedule.final_fraction", 0, 1, "0 is usual"),
)
PLANNED = (warmup_beyond_end, warmup_long, cold_start, cooldown_meets_warmup, no_cooldown, final_rate_high)
