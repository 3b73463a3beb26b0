"""GPUs are described as the driver answers; what it does not answer is left out, and no driver means no GPUs."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from services.inspector.accelerators import AcceleratorProbe


class NVMLError(Exception):
    """The driver's refusal."""


def refuse(*_):
    raise NVMLError("not supported")


@pytest.fixture
def driver(monkeypatch):
    """A driver with one GPU, in the place of NVML's Python package."""
    module = ModuleType("pynvml")
    module.calls = []
    answers = {
        "nvmlInit": lambda: module.calls.append("init"),
        "nvmlShutdown": lambda: module.calls.append("shutdown"),
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: f"device {index}",
        "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(total=150 << 30, free=149 << 30),
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13010,
        "nvmlDeviceGetName": lambda device: b"NVIDIA H200",
        "nvmlDeviceGetCudaComputeCapability": lambda device: (9, 0),
        "nvmlSystemGetDriverVersion": lambda: "580.65",
        "nvmlDeviceGetTemperature": lambda device, sensor: 41,
        "nvmlDeviceGetUtilizationRates": lambda device: SimpleNamespace(gpu=25),
        "nvmlDeviceGetPowerUsage": lambda device: 120_500,
        "nvmlDeviceGetEnforcedPowerLimit": refuse,
        "NVML_TEMPERATURE_GPU": 0,
        "NVMLError": NVMLError,
    }
    for name, answer in answers.items():
        setattr(module, name, answer)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_a_gpu_is_described_and_what_it_does_not_answer_is_absent(driver):
    (gpu,) = AcceleratorProbe().describe()
    assert (gpu.model, gpu.compute_capability, gpu.cuda_version) == ("NVIDIA H200", "9.0", "13.1")
    assert (gpu.memory_total_bytes, gpu.memory_available_bytes) == (150 << 30, 149 << 30)
    assert (gpu.temperature_celsius, gpu.utilization_share, gpu.power_watts) == (41, 0.25, 120.5)
    assert not gpu.HasField("power_limit_watts")


def test_the_driver_is_opened_once_and_let_go_at_the_end(driver):
    probe = AcceleratorProbe()
    probe.describe()
    probe.describe()
    probe.close()
    probe.close()
    assert driver.calls == ["init", "shutdown"]


def test_without_a_driver_there_are_no_gpus(driver):
    driver.nvmlInit = refuse
    probe = AcceleratorProbe()
    assert probe.describe() == []
    probe.close()
    assert driver.calls == []


def test_without_the_package_there_are_no_gpus(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert AcceleratorProbe().describe() == []
