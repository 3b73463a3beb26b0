"""What a worker and its machine use, sampled once a second by a thread of its own.

NVML answers for the GPUs where its package and a driver are there; without them there are none.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import psutil

from octavo.v1 import trainer_pb2 as pb
from services.trainer.events import EventLog

INTERVAL_S: Final = 1.0


class UsageSampler:
    """Writes a ResourceUsage event every `INTERVAL_S` for the length of a `with` block."""

    def __init__(self, log: EventLog, directory: Path, interval_s: float = INTERVAL_S) -> None:
        self._log = log
        self._gauge = UsageGauge(directory)
        self._interval_s = interval_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resource-usage", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._thread.join()
        self._gauge.close()

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            # A full disk fails the job where its steps are written; samples are missed without harm.
            with contextlib.suppress(OSError):
                self._log.append(pb.JobEvent(resource_usage=self._gauge.read()))


class UsageGauge:
    """Reads what is used now. Rates are those since the reading before."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process = psutil.Process()
        self._nvml = _open_nvml()
        self._counters = self._count()
        psutil.cpu_percent()
        self._process.cpu_percent()

    def close(self) -> None:
        """Let go of NVML."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    def read(self) -> pb.ResourceUsage:
        """Of this process, its machine and the disk of the directory."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._directory))
        usage = pb.ResourceUsage(
            process_cpu_cores=self._process.cpu_percent() / 100,
            cpu_utilization=psutil.cpu_percent() / 100,
            process_memory_bytes=self._process.memory_info().rss,
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            disk_used_bytes=disk.used,
            disk_total_bytes=disk.total,
        )
        before, self._counters = self._counters, self._count()
        elapsed_s = max(1e-3, self._counters["time_s"] - before["time_s"])
        for name in self._counters.keys() & before.keys() - {"time_s"}:
            setattr(usage, f"{name}_bytes_per_second", max(0.0, self._counters[name] - before[name]) / elapsed_s)
        temperature = _hottest()
        if temperature is not None:
            usage.cpu_temperature_celsius = temperature
        usage.gpus.extend(_gpus(self._nvml))
        return usage

    def _count(self) -> dict[str, float]:
        """Bytes so far, by the field of the rate that follows from them; what the system does not tell is left out."""
        counters = {"time_s": time.monotonic()}
        if hasattr(self._process, "io_counters"):
            disk = self._process.io_counters()
            counters |= {"disk_read": disk.read_bytes, "disk_written": disk.write_bytes}
        network = psutil.net_io_counters()
        if network is not None:
            counters |= {"network_received": network.bytes_recv, "network_sent": network.bytes_sent}
        return counters


def _hottest() -> float | None:
    """Of the sensors of the machine, degrees Celsius; None where it has none."""
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    readings = [one.current for sensors in psutil.sensors_temperatures().values() for one in sensors]
    return max(readings, default=None)


def _open_nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _gpus(nvml: Any) -> list[pb.GpuUsage]:
    return [] if nvml is None else [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]


def _gpu(nvml: Any, index: int) -> pb.GpuUsage:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    memory, name = nvml.nvmlDeviceGetMemoryInfo(device), nvml.nvmlDeviceGetName(device)
    usage = pb.GpuUsage(
        index=index,
        model=name.decode() if isinstance(name, bytes) else name,
        memory_used_bytes=memory.used,
        memory_total_bytes=memory.total,
    )
    # Virtual and partitioned devices do not answer all of these.
    readings: dict[str, Callable[[], float]] = {
        "utilization": lambda: nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100,
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
        "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1000,
    }
    for field, read in readings.items():
        try:
            setattr(usage, field, read())
        except nvml.NVMLError:
            continue
    return usage
