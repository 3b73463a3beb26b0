"""The GPUs as NVIDIA's driver describes them, through NVML. Where no driver answers there are none.

Starts nothing on a GPU and takes no memory of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from octavo.v1 import inspector_pb2 as pb

Value = TypeVar("Value")


class AcceleratorProbe:
    """Keeps NVML open between questions, since opening it takes longer than asking. Close it."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._is_tried = False

    def describe(self) -> list[pb.AcceleratorDescription]:
        """The GPUs by index; empty when there are none, or neither driver nor its Python package is installed."""
        nvml = self._opened()
        if nvml is None:
            return []
        return [_describe(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]

    def close(self) -> None:
        """Lets go of NVML."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def _opened(self) -> Any:
        if not self._is_tried:
            self._is_tried = True
            self._nvml = _open()
        return self._nvml


def _open() -> Any:
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None
    return pynvml


def _describe(nvml: Any, index: int) -> pb.AcceleratorDescription:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(device)
    cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
    description = pb.AcceleratorDescription(
        index=index,
        model=_text(nvml.nvmlDeviceGetName(device)),
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.free,
        compute_capability="{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(device)),
        driver_version=_text(nvml.nvmlSystemGetDriverVersion()),
        cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}",
    )
    # Virtual and partitioned devices do not answer all of these.
    temperature = _answer(nvml, lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU))
    utilization = _answer(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(device).gpu)
    power = _answer(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(device))
    power_limit = _answer(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(device))
    if temperature is not None:
        description.temperature_celsius = temperature
    if utilization is not None:
        description.utilization_share = utilization / 100
    if power is not None:
        description.power_watts = power / 1000
    if power_limit is not None:
        description.power_limit_watts = power_limit / 1000
    return description


def _answer(nvml: Any, ask: Callable[[], Value]) -> Value | None:
    """The driver's answer; None where this device does not give one."""
    try:
        return ask()
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
