"""Going on from a version, whole or by adapters."""

from __future__ import annotations

from octavo.v1 import trainer_pb2 as pb
from services.trainer.checks.finding import Case, Finding, below_one, fault, warning, within

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_proj", "c_fc")


@fault("lora", "Adapters are put onto a version.")
def adapters_without_base(spec: pb.TrainSpec) -> Finding | None:
    if not spec.HasField("lora") or spec.base_version:
        return None
    return Finding("adapters need a base_version to adapt", {"lora": None}, "name one, such as models/poet@champion")


@fault("lora.targets", "Projections of a block, each once.")
def adapter_targets(spec: pb.TrainSpec) -> Finding | None:
    targets = list(spec.lora.targets)
    known = [name for name in dict.fromkeys(targets) if name in TARGETS]
    if known == targets:
        return None
    odd = [name[:40] for name in targets if name not in TARGETS] or ["a projection named twice"]
    why = f"{', '.join(odd)}: each of {', '.join(TARGETS)} at most once"
    return Finding(why, {"lora.targets": list(known)})


@warning("lora.alpha", "Adapters are scaled by a few times one.")
def adapters_loud(case: Case) -> Finding | None:
    lora = case.asked.lora
    rank = lora.rank if lora.HasField("rank") else 8
    if lora.alpha <= 16 * rank:
        return None
    why = f"alpha / rank = {lora.alpha / rank:g} multiplies every change of an adapter"
    return Finding(why, {"lora.alpha": 2.0 * rank})


@warning("lora.rank", "Adapters are smaller than what they adapt.")
def adapters_wide(case: Case) -> Finding | None:
    rank, width = case.asked.lora.rank, case.shape.width
    if rank <= width // 2 or width < 16:
        return None
    why = f"two matrices of rank {rank} are as large as one of {width} x {width}; training all weights costs no more"
    return Finding(why, {"lora.rank": width // 8})


ASKED = (
    within("lora.rank", 1, 256, "8 is usual"),
    within("lora.alpha", 1e-3, 4096, "twice the rank is usual"),
    below_one("lora.dropout", 0.05, "0 to 0.1 is usual"),
    adapters_without_base,
    adapter_targets,
)
PLANNED = (adapters_loud, adapters_wide)
