"""Where and in what arithmetic the run computes, what it costs, and whether it fits into memory."""

from __future__ import annotations

from octavo.v1 import trainer_pb2 as pb
from services.trainer.checks.finding import Case, Finding, changed, fault, obstacle, warning, within
from services.trainer.footprint import memory_bytes

_MOST_MEMORY = 0.8
_WORTH_WAITING_S = 60.0


@fault("device", "`cpu`, `cuda` or `cuda:` and a number.")
def device_name(spec: pb.TrainSpec) -> Finding | None:
    name = spec.device
    is_number = name.startswith("cuda:") and name[5:].isdecimal() and len(name) < 9
    if name in ("", "cpu", "cuda") or is_number:
        return None
    return Finding(f"{name[:40]!r} is not a device; use cpu, cuda or cuda:1", {"device": None})


@obstacle("device", "The device is there.")
def device_absent(case: Case) -> Finding | None:
    name, count = case.asked.device, case.machine.cuda_devices
    if count is None or not name.startswith("cuda") or int(name.partition(":")[2] or 0) < count:
        return None
    there = f"cuda:0 to cuda:{count - 1}" if count > 1 else "one, cuda:0" if count else "none"
    return Finding(f"{name} is not on this machine; of CUDA devices there is {there}", {"device": None})


@warning("device", "A long run uses the fastest device there is.")
def cuda_unused(case: Case) -> Finding | None:
    if case.asked.device != "cpu" or not case.machine.cuda_devices or case.training_s <= _WORTH_WAITING_S:
        return None
    return Finding("cpu takes many times as long as the CUDA device of this machine", {"device": None})


@warning("threads", "There is a core for each thread.")
def threads_beyond_cores(case: Case) -> Finding | None:
    machine, threads = case.machine, case.spec.threads
    cores = machine.cores or machine.threads
    if case.spec.device != "cpu" or threads <= cores:
        return None
    return Finding(f"{threads} threads on {cores} cores wait for one another", {"threads": None})


@warning("threads", "Workers that run at once share the cores.")
def threads_beyond_share(case: Case) -> Finding | None:
    machine, threads = case.machine, case.spec.threads
    if case.spec.device != "cpu" or not machine.threads < threads <= machine.cores:
        return None
    why = f"{threads} threads are more than a share of {machine.threads}; {case.around.workers} workers may run at once"
    return Finding(why, {"threads": None})


@warning("threads", "A long run uses its share of the cores.")
def threads_idle(case: Case) -> Finding | None:
    share, threads = case.machine.threads, case.spec.threads * max(1, case.spec.processes)
    if case.spec.device != "cpu" or threads >= share / 2 or case.training_s <= _WORTH_WAITING_S:
        return None
    return Finding(f"{threads} of {share} cores work; the others idle", {"threads": None})


@warning("precision", "The processor computes what is asked for, rather than emulate it.")
def bf16_emulated(case: Case) -> Finding | None:
    is_emulated = case.spec.device == "cpu" and not case.machine.has_bf16
    if case.spec.precision != pb.TRAINING_PRECISION_BF16 or not is_emulated:
        return None
    why = "this processor has no bf16 instructions and emulates them, several times slower than fp32"
    return Finding(why, {"precision": None})


@warning("precision", "A long run computes in bf16 where the processor does.")
def fp32_slow(case: Case) -> Finding | None:
    is_asked = case.asked.precision == pb.TRAINING_PRECISION_FP32
    if not is_asked or not case.machine.has_bf16 or case.training_s <= _WORTH_WAITING_S:
        return None
    why = "fp32 takes about three times as long as bf16 here; weights and optimizer are fp32 in both"
    return Finding(why, {"precision": None})


def _smaller_passes(case: Case, most: float) -> Finding:
    """The largest microbatch with which the worker stays below `most` bytes; advice alone where none does."""
    batch = case.spec.batch_size
    for size in range(case.spec.microbatch_size - 1, 0, -1):
        change = {"batch_size": batch, "microbatch_size": size}
        if batch % size == 0 and memory_bytes(changed(case.spec, change), case.shape) <= most:
            return Finding("", change, "choose a smaller size; the gradients stay the same")
    return Finding("", {}, "choose a smaller size or a shorter context: even one sequence at a time does not fit")


@warning("microbatch_size", "The worker fits into the memory of machine or container.")
def memory_short(case: Case) -> Finding | None:
    there, needed = case.machine.memory_bytes, case.plan.memory_bytes
    if not there or needed <= _MOST_MEMORY * there:
        return None
    smaller = _smaller_passes(case, _MOST_MEMORY * there)
    why = f"needs about {needed / 2**30:.1f} GiB of {there / 2**30:.1f} GiB"
    return Finding(why, smaller.change, smaller.advice)


@warning("microbatch_size", "The worker fits into the memory that is free now.")
def memory_taken(case: Case) -> Finding | None:
    there, free, needed = case.machine.memory_bytes, case.around.free_memory_bytes, case.plan.memory_bytes
    if case.spec.device != "cpu" or not free or not free < needed <= _MOST_MEMORY * (there or needed):
        return None
    smaller = _smaller_passes(case, free)
    why = f"needs about {needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free, the rest is in use"
    return Finding(why, smaller.change, "end other programs")


@warning("microbatch_size", "All workers that may run at once fit into memory together.")
def memory_of_neighbours(case: Case) -> Finding | None:
    there, workers, needed = case.machine.memory_bytes, case.around.workers, case.plan.memory_bytes
    if not there or workers < 2 or needed > _MOST_MEMORY * there or workers * needed <= there:
        return None
    smaller = _smaller_passes(case, there / workers)
    why = f"{workers} such jobs at once need {workers * needed / 2**30:.1f} GiB of {there / 2**30:.1f} GiB"
    return Finding(why, smaller.change, "let fewer run at once (max_running_jobs)")


ASKED = (
    device_name,
    within("threads", 1, 1024, "leave it out to use those of the machine"),
    within("price_per_hour", 0, 1e6, "in any currency; leave it out to have the trainer's own"),
)
PLANNED = (
    device_absent,
    cuda_unused,
    threads_beyond_cores,
    threads_beyond_share,
    threads_idle,
    bf16_emulated,
    fp32_slow,
    memory_short,
    memory_taken,
    memory_of_neighbours,
)
