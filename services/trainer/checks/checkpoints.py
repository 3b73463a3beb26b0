"""When the run is saved and what is kept."""

from __future__ import annotations

import math

from services.trainer.checks.finding import Case, Finding, changed, warning, within
from services.trainer.footprint import disk_bytes

_INTERVAL_S = 30.0
_WORTH_SAVING_S = 600.0
_MOST_MILESTONES = 100
_MOST_SAVING = 0.2
_SAVING = 0.05
_MOST_EPOCHS_UNWATCHED = 6.0


def _interval(case: Case) -> int:
    return max(1, round(_INTERVAL_S / case.times.step_s))


@warning("checkpoints.interval_steps", "A long run is saved on its way.")
def never_saved(case: Case) -> Finding | None:
    interval, steps = case.spec.checkpoints.interval_steps, case.plan.total_steps
    if not case.has("checkpoints.interval_steps") or 0 < interval <= steps or case.training_s <= _WORTH_SAVING_S:
        return None
    why = f"a run of {case.training_s / 60:.0f} minutes that is lost begins again from its first step"
    return Finding(why, {"checkpoints.interval_steps": _interval(case)})


@warning("checkpoints.interval_steps", "Saving takes a small part of the time.")
def saving_costly(case: Case) -> Finding | None:
    interval = case.spec.checkpoints.interval_steps
    step_s, save_s = case.times.step_s, case.times.save_s
    if not case.has("checkpoints.interval_steps") or not interval or save_s <= _MOST_SAVING * interval * step_s:
        return None
    if interval >= case.plan.total_steps or case.plan.total_steps // interval * save_s < 1:
        return None
    why = f"a checkpoint of {save_s:.2f} s every {interval * step_s:.2f} s of training"
    return Finding(why, {"checkpoints.interval_steps": math.ceil(save_s / (_SAVING * step_s))})


@warning("checkpoints.keep_latest", "The checkpoints fit onto the disk.")
def disk_short(case: Case) -> Finding | None:
    free = case.around.free_disk_bytes
    if not free or case.plan.disk_bytes <= free:
        return None
    why = f"checkpoints and bundle take {case.plan.disk_bytes / 2**30:.2g} GiB; {free / 2**30:.2g} GiB are free"
    fewer = {
        "checkpoints.keep_latest": 2,
        "checkpoints.keep_best": False,
        "checkpoints.milestone_interval_steps": 0,
    }
    fits = disk_bytes(changed(case.spec, fewer), case.shape, case.plan.total_steps) <= free
    return Finding(why, fewer if fits else {}, "make room on the disk or choose a smaller size")


@warning("checkpoints.keep_latest", "As many checkpoints are written as are to be kept.")
def kept_in_vain(case: Case) -> Finding | None:
    policy = case.spec.checkpoints
    written = 1 + (case.plan.total_steps // policy.interval_steps if policy.interval_steps else 0)
    if not case.has("checkpoints.keep_latest") or policy.keep_latest <= max(3, written):
        return None
    why = f"{policy.keep_latest} are kept of {written} that are written"
    interval = case.plan.total_steps // policy.keep_latest
    if interval:
        return Finding(why, {"checkpoints.interval_steps": interval})
    return Finding(why, {"checkpoints.keep_latest": 3})


@warning("checkpoints.keep_best", "A run that may overfit keeps its best weights.")
def best_not_kept(case: Case) -> Finding | None:
    if case.spec.checkpoints.keep_best or case.plan.epochs <= _MOST_EPOCHS_UNWATCHED or case.looks < 2:
        return None
    why = f"the text is seen {case.plan.epochs:.0f} times; without the best checkpoint the last weights are released"
    return Finding(why, {"checkpoints.keep_best": True})


@warning("checkpoints.milestone_interval_steps", "A milestone is reached before the end.")
def milestone_beyond_end(case: Case) -> Finding | None:
    interval, steps = case.spec.checkpoints.milestone_interval_steps, case.plan.total_steps
    if interval <= steps:
        return None
    why = f"every {interval:,} steps is never in {steps:,}: there will be no milestone"
    return Finding(why, {"checkpoints.milestone_interval_steps": max(1, steps // 4)})


@warning("checkpoints.milestone_interval_steps", "Milestones are few: none of them is ever removed.")
def many_milestones(case: Case) -> Finding | None:
    interval, steps = case.spec.checkpoints.milestone_interval_steps, case.plan.total_steps
    if not interval or steps // interval <= _MOST_MILESTONES:
        return None
    why = f"{steps // interval:,} milestones are kept for good"
    return Finding(why, {"checkpoints.milestone_interval_steps": math.ceil(steps / 10)})


ASKED = (
    within("checkpoints.interval_steps", 0, 1 << 40, "0 saves only when asked and at the end"),
    within("checkpoints.keep_latest", 2, 1000, "the older is the fallback when the newest is damaged"),
    within("checkpoints.milestone_interval_steps", 0, 1 << 40, "0 keeps none for good"),
)
PLANNED = (never_saved, saving_costly, disk_short, kept_in_vain, best_not_kept, milestone_beyond_end, many_milestones)
