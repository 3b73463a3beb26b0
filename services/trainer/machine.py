"""What the machine can do for a run: its threads, its device, whether it multiplies bf16 natively, its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from octavo.serving.container import memory_limits_bytes

# Measured with the default model: 2 threads of a Zen 5 EPYC at 3 x 10^11 FLOP/s in bf16 and 0.8 x 10^11 in fp32.
_CPU_THREAD_FLOPS = {True: 1.3e11, False: 4e10}
# A small model is bound by kernel launches, far below the peak of any GPU.
_CUDA_FLOPS = 2e13


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device with `threads` CPU threads for one worker, of `cores` in all.

    `memory_bytes` is the device's or, of the CPU, what machine and container allow; 0 where unknown, as `cores` is.
    `cuda_devices` None means that nobody has looked.
    """

    device: str
    threads: int
    has_bf16: bool
    memory_bytes: int
    cores: int = 0
    cuda_devices: int | None = None

    @classmethod
    def detect(cls, *, device: str = "", threads: int = 0) -> Self:
        """This machine; `device` empty means cuda where there is one, `threads` 0 means all cores."""
        import psutil
        import torch

        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        is_cuda = chosen.startswith("cuda")
        has_bf16 = is_cuda or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return cls(
            device=chosen,
            threads=threads or cores,
            has_bf16=has_bf16,
            memory_bytes=torch.cuda.get_device_properties(chosen).total_memory if is_cuda else allowed_memory_bytes(),
            cores=cores,
            cuda_devices=torch.cuda.device_count(),
        )

    def flops(self, *, is_bf16: bool, device: str = "") -> float:
        """Floating-point operations per second that a training step reaches, roughly; on `device` or its own."""
        if (device or self.device).startswith("cuda"):
            return _CUDA_FLOPS
        return self.threads * _CPU_THREAD_FLOPS[is_bf16 and self.has_bf16]


def allowed_memory_bytes() -> int:
    """What machine and container allow together."""
    import psutil

    return min([int(psutil.virtual_memory().total), *memory_limits_bytes()])
