"""How many processes share a run, and whether there is a part and a device for each."""

from __future__ import annotations

from octavo.v1 import trainer_pb2 as pb
from services.trainer.checks.finding import Case, Finding, fault, obstacle, warning, within

_MOST_PROCESSES = 64


@fault("processes", "Each process takes as many microbatches of a batch as the others.")
def processes_share_batch(spec: pb.TrainSpec) -> Finding | None:
    count, batch = spec.processes, spec.batch_size
    part = count * max(1, spec.microbatch_size)
    if not (spec.HasField("batch_size") and 1 < count <= _MOST_PROCESSES) or batch < 1 or batch % part == 0:
        return None
    nearest = max(1, round(batch / count)) * count
    if batch % count == 0:
        why = f"a batch of {batch} in microbatches of {spec.microbatch_size} cannot be shared evenly by {count}"
    else:
        why = f"a batch of {batch} sequences cannot be shared evenly by {count}"
    return Finding(why, {"batch_size": nearest, "microbatch_size": None})


@fault("processes", "Several processes on CUDA take a device each, from the first one on.")
def processes_on_one_device(spec: pb.TrainSpec) -> Finding | None:
    if spec.processes < 2 or not spec.device.startswith("cuda:"):
        return None
    return Finding(f"{spec.processes} processes do not compute on {spec.device} alone", {"device": None})


@obstacle("processes", "There is a CUDA device for each process.")
def processes_beyond_devices(case: Case) -> Finding | None:
    count, devices = case.spec.processes, case.machine.cuda_devices
    if not case.spec.device.startswith("cuda") or devices is None or count <= max(1, devices):
        return None
    return Finding(f"{count} processes need as many CUDA devices; this machine has {devices}", {"processes": devices})


@warning("processes", "There is a core for each thread of each process.")
def processes_beyond_cores(case: Case) -> Finding | None:
    count, threads = case.spec.processes, case.spec.threads
    cores = case.machine.cores or case.machine.threads
    if case.spec.device != "cpu" or count < 2 or count * threads <= cores:
        return None
    why = f"{count} processes of {threads} threads each wait for one another on {cores} cores"
    return Finding(why, {"processes": None, "threads": None})


ASKED = (
    within("processes", 1, _MOST_PROCESSES, "1 is usual, on CUDA one for each device"),
    processes_share_batch,
    processes_on_one_device,
)
PLANNED = (processes_beyond_devices, processes_beyond_cores)
