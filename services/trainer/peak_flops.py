"""The most floating-point operations a second that this machine reaches in a precision: measured, never looked up.

A large matrix product on the device and threads that train. The highest figure is kept in a file of the trainer's: one
measured beside other work is too low.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Final

import torch

from services.trainer.environment import device_model

# A product has to last so long to be measured well; shorter ones are made twice as large.
_LEAST_S: Final = 0.004
_ROUNDS: Final = 5
_SIZES: Final = (256, 512, 1024, 2048, 4096, 8192)


def peak_flops(device: str, *, is_bf16: bool, threads: int, cache: Path) -> float:
    """Operations per second, multiply and add counted as two. Takes some 50 ms; `cache` is the file of what is known.

    The device has to be free of this process's own work.
    """
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    key = f"{device_model(device)}, {threads} threads, {dtype}"
    known = _read(cache)
    measured = _measure(torch.device(device), dtype)
    if measured > known.get(key, 0.0):
        known[key] = measured
        _write(cache, known)
    return known[key]


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    best = 0.0
    for size in _SIZES:
        # Not zeros: a GPU that multiplies zeros stays cool and fast.
        one = torch.linspace(-1.0, 1.0, size * size, device=device).view(size, size).to(dtype)
        durations = [_product_s(one) for _ in range(_ROUNDS)]
        best = max(best, 2.0 * size**3 / min(durations))
        if min(durations) >= _LEAST_S:
            break
    return best


def _product_s(one: torch.Tensor) -> float:
    _wait(one.device)
    start = time.perf_counter()
    one @ one
    _wait(one.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _read(cache: Path) -> dict[str, float]:
    try:
        known = json.loads(cache.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(key): float(value) for key, value in known.items()} if isinstance(known, dict) else {}


def _write(cache: Path, known: dict[str, float]) -> None:
    partial = cache.with_name(f".{cache.name}.{os.getpid()}")
    partial.write_text(json.dumps(known, indent=1, sort_keys=True))
    partial.replace(cache)
