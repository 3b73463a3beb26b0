"""What a replay comes to before it is accepted: its last step, its length, and every reason to refuse it."""

from __future__ import annotations

from octavo.errors import InvalidArgument
from octavo.v1 import trainer_pb2 as pb
from services.trainer.supervision import require_training


def plan_replay(target: pb.Job, spec: pb.ReplaySpec) -> pb.Plan:
    """The plan of a replay of `target`; FailedPrecondition for jobs without steps, InvalidArgument by field."""
    require_training(target, "it has no steps to do again")
    done = target.latest_metric.step
    last = spec.to_step or done
    wrong = {}
    if last > done:
        wrong["job.replay.to_step"] = f"step {last} is not done yet; {target.name} has done {done}"
    elif not last:
        wrong["job.replay.job"] = f"{target.name} has not done a step yet; wait for the first"
    elif spec.from_step >= last:
        wrong["job.replay.from_step"] = f"{spec.from_step} leaves no step to do before {last}; at most {last - 1}"
    if wrong:
        raise InvalidArgument.fields(wrong)
    resolved = pb.ReplaySpec(job=target.name, from_step=spec.from_step, to_step=last)
    steps = last - spec.from_step
    plan = pb.Plan(
        replay=resolved,
        parameter_count=target.plan.parameter_count,
        dataset_tokens=target.plan.dataset_tokens,
        tokens_per_step=target.plan.tokens_per_step,
        total_steps=steps,
        memory_bytes=target.plan.memory_bytes,
        step_flops=target.plan.step_flops,
    )
    step_s = target.latest_metric.step_duration.ToNanoseconds() / 1e9
    plan.estimated_duration.FromNanoseconds(int(steps * step_s * 1e9))
    return plan
