"""The environment a run is bit-exact in: two runs of one plan with equal fingerprints give equal weights.

CPU reductions depend on the thread count and the vector instructions; kernels differ between builds of PyTorch.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import torch

import octavo
from octavo.v1 import trainer_pb2 as pb


def fingerprint(device_name: str, threads: int) -> pb.EnvironmentFingerprint:
    """What this process computes with on a device such as `cpu` or `cuda:1`."""
    device = torch.device(device_name)
    environment = pb.EnvironmentFingerprint(
        device=device.type,
        device_name=device_model(device_name),
        threads=threads,
        octavo_version=octavo.__version__,
        torch_version=torch.__version__,
        python_version=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        details={"cpu_capability": torch.backends.cpu.get_cpu_capability()},
    )
    if device.type == "cuda":
        environment.details["cuda_version"] = torch.version.cuda or ""
        environment.details["cudnn_version"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    # The version of Python and of Octavo do not change the arithmetic, but a change of either may change the code.
    content = environment.SerializeToString(deterministic=True)
    environment.digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return environment


def device_model(device_name: str) -> str:
    """What a device such as `cpu` or `cuda:1` is: `AMD EPYC 9B14`, `NVIDIA H200`."""
    return torch.cuda.get_device_name(device_name) if device_name.startswith("cuda") else _cpu_name()


def _cpu_name() -> str:
    """Linux says the model in /proc/cpuinfo only; elsewhere the platform knows something."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
