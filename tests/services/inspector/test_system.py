"""The machine is described as it is, quickly, and its shortcomings are named."""

import os
import platform
import time

import onnxruntime
import psutil
import pytest

from octavo.v1 import inspector_pb2 as pb
from services.inspector.accelerators import AcceleratorProbe
from services.inspector.processor import ProcessorProbe
from services.inspector.system import SystemProbe, judge


@pytest.fixture
def probe(tmp_path):
    accelerators = AcceleratorProbe()
    yield SystemProbe(tmp_path / "not" / "yet", ProcessorProbe(), accelerators)
    accelerators.close()


def test_a_diagnosis_agrees_with_the_system(probe, tmp_path):
    diagnosis = probe.diagnose()
    assert diagnosis.processor.architecture == platform.machine()
    assert diagnosis.processor.logical_core_count == psutil.cpu_count()
    assert 0 < diagnosis.processor.usable_core_count <= os.cpu_count()
    assert diagnosis.memory.total_bytes == psutil.virtual_memory().total
    assert 0 < diagnosis.memory.available_bytes <= diagnosis.memory.total_bytes
    assert diagnosis.memory.process_bytes > 1 << 20
    assert [storage.purpose for storage in diagnosis.storage] == ["data", "temporary"]
    assert all(storage.is_writable for storage in diagnosis.storage)
    assert diagnosis.versions["python"] == platform.python_version()
    assert diagnosis.versions["onnxruntime"] == onnxruntime.__version__
    assert diagnosis.execution_providers == onnxruntime.get_available_providers()
    assert diagnosis.limits.open_files > 0 or not diagnosis.limits.HasField("open_files")


def test_a_second_diagnosis_takes_under_a_tenth_of_a_second(probe):
    probe.diagnose()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        diagnosis = probe.diagnose()
        times.append(time.perf_counter() - started)
    assert min(times) < 0.1
    assert 0 < diagnosis.elapsed.ToNanoseconds() <= 1e9 * max(times)


def machine(tmp_path, cpuinfo="", cgroup="0::/\n", caches=(), **groups):
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    root, cache = sys / "fs" / "cgroup", sys / "devices" / "system" / "cpu" / "cpu0" / "cache"
    (proc / "self").mkdir(parents=True)
    (proc / "cpuinfo").write_text(cpuinfo)
    (proc / "self" / "cgroup").write_text(cgroup)
    for name, files in groups.items():
        directory = root.joinpath(*name.split("_"))
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (directory / file).write_text(text)
    for index, size in enumerate(caches):
        (cache / f"index{index}").mkdir(parents=True)
        (cache / f"index{index}" / "size").write_text(f"{size}K\n")
    return ProcessorProbe(proc, sys)


def test_the_features_that_decide_speed_are_read_from_the_first_processor(tmp_path):
    cpuinfo = "model name\t: Fast\nflags\t\t: fpu avx2 avx512_vnni hypervisor\n\nmodel name\t: Slow\n"
    processor = machine(tmp_path, cpuinfo, caches=(32, 32768, 512)).describe()
    assert processor.model == "Fast"
    assert processor.cache_bytes == 32768 * 1024
    assert processor.features == ["avx2", "avx512_vnni"]


def test_the_tightest_quota_of_the_containers_around_it_counts(tmp_path):
    groups = {"pod_box": {"cpu.max": "max 100000"}, "pod": {"cpu.max": "50000 100000"}}
    probe = machine(tmp_path, cgroup="0::/pod/box\n", **groups)
    assert probe.describe().usable_core_count == 0.5


def test_the_containers_memory_limit_bounds_what_is_free(tmp_path):
    group = {"memory.max": "1000000\n", "memory.current": "700000\n", "memory.stat": "anon 1\ninactive_file 100000\n"}
    memory = machine(tmp_path, cgroup="0::/pod\n", pod=group).describe_memory()
    assert memory.limit_bytes == 1_000_000
    assert memory.available_bytes == 400_000


def test_an_old_containers_limits_count_too(tmp_path):
    groups = {
        "memory": {"memory.limit_in_bytes": "1000000", "memory.usage_in_bytes": "400000"},
        "cpu": {"cpu.cfs_quota_us": "25000", "cpu.cfs_period_us": "100000"},
    }
    probe = machine(tmp_path, cgroup="4:memory:/x\n", **groups)
    assert probe.describe_memory().available_bytes == 600_000
    assert probe.describe().usable_core_count == 0.25


def sound():
    return pb.SystemDiagnosis(
        processor=pb.ProcessorDescription(
            architecture="x86_64", features=["avx2", "avx512_vnni"], usable_core_count=8, logical_core_count=8
        ),
        memory=pb.MemoryDescription(total_bytes=1 << 34, available_bytes=1 << 33),
        storage=[pb.StorageDescription(purpose="data", path="/d", available_bytes=1 << 34, is_writable=True)],
        execution_providers=["CPUExecutionProvider"],
        limits=pb.ProcessLimits(open_files=4096),
    )


def test_a_sound_machine_has_no_findings():
    assert list(judge(sound())) == []


@pytest.mark.parametrize(
    ("change", "code", "severity"),
    [
        ({"processor": {"features": ["sse4_2"]}}, "cpu-avx2-missing", pb.FINDING_SEVERITY_WARNING),
        ({"processor": {"features": ["avx2"]}}, "cpu-int8-missing", pb.FINDING_SEVERITY_INFO),
        ({"processor": {"load_average": 40.0}}, "cpu-busy", pb.FINDING_SEVERITY_WARNING),
        ({"processor": {"usable_core_count": 1.5}}, "cpu-limited", pb.FINDING_SEVERITY_INFO),
        ({"memory": {"available_bytes": 1 << 29}}, "memory-low", pb.FINDING_SEVERITY_WARNING),
        ({"memory": {"available_bytes": 1 << 20}}, "memory-exhausted", pb.FINDING_SEVERITY_ERROR),
        ({"memory": {"swap_used_bytes": 1 << 30}}, "swapping", pb.FINDING_SEVERITY_WARNING),
        ({"limits": {"open_files": 256}}, "open-files-low", pb.FINDING_SEVERITY_WARNING),
    ],
)
def test_each_shortcoming_is_named(change, code, severity):
    diagnosis = sound()
    for part, fields in change.items():
        for field, value in fields.items():
            message = getattr(diagnosis, part)
            message.ClearField(field)
            if isinstance(value, list):
                getattr(message, field).extend(value)
            else:
                setattr(message, field, value)
    assert [(finding.code, finding.severity) for finding in judge(diagnosis)] == [(code, severity)]


def test_a_gpu_that_the_runtime_cannot_use_and_a_full_disk_are_named():
    diagnosis = sound()
    diagnosis.accelerators.add(model="H200", temperature_celsius=90)
    diagnosis.storage[0].available_bytes = 1
    diagnosis.storage[0].is_writable = False
    assert [finding.code for finding in judge(diagnosis)] == [
        "storage-read-only",
        "storage-full",
        "gpu-unused",
        "gpu-hot",
    ]
    del diagnosis.execution_providers[:]
    assert "onnxruntime-missing" in [finding.code for finding in judge(diagnosis)]
