"""Describes the machine and says what stands in the way of good work on it.

Measures nothing that takes time: that is a benchmark's work.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from octavo.v1 import inspector_pb2 as pb
from services.inspector import findings
from services.inspector.accelerators import AcceleratorProbe
from services.inspector.processor import ProcessorProbe
from services.inspector.runtimes import installed_versions

_GIB: Final = 1 << 30
_MIB: Final = 1 << 20
# One small model with its cache, and one checkpoint with its temporary copy.
_COMFORTABLE_BYTES: Final = 1 * _GIB
_CRITICAL_BYTES: Final = 128 * _MIB
# gRPC takes a descriptor for each connection, SQLite and the blob store some for each call.
_OPEN_FILES: Final = 1024


class SystemProbe:
    """The machine, asked anew each time for what changes. `data_dir` is where the programs write."""

    def __init__(
        self,
        data_dir: Path,
        processor: ProcessorProbe,
        accelerators: AcceleratorProbe,
    ) -> None:
        self._data_dir = data_dir
        self._processor = processor
        self._accelerators = accelerators
        # What is installed does not change while a process runs.
        self._versions: dict[str, str] = {}
        self._providers: list[str] | None = None

    def available_bytes(self) -> int:
        """Memory that is free for a model: of the largest GPU that ONNX Runtime can use, else of the machine."""
        diagnosis = self.diagnose()
        if "CUDAExecutionProvider" in diagnosis.execution_providers and diagnosis.accelerators:
            return max(accelerator.memory_available_bytes for accelerator in diagnosis.accelerators)
        return diagnosis.memory.available_bytes

    def diagnose(self) -> pb.SystemDiagnosis:
        """The machine now; blocks for some milliseconds, the first time until ONNX Runtime is imported."""
        started = time.perf_counter()
        if self._providers is None:
            self._versions, self._providers = installed_versions(), _execution_providers()
        diagnosis = pb.SystemDiagnosis(
            processor=self._processor.describe(),
            memory=self._processor.describe_memory(),
            storage=[_storage("data", self._data_dir), _storage("temporary", Path(tempfile.gettempdir()))],
            accelerators=self._accelerators.describe(),
            versions=self._versions,
            execution_providers=self._providers,
            limits=_limits(),
            platform=f"{platform.system()} {platform.release()}",
        )
        diagnosis.findings.extend(findings.ranked(judge(diagnosis)))
        now = Timestamp()
        now.GetCurrentTime()
        diagnosis.measure_time.CopyFrom(now)
        elapsed = Duration()
        elapsed.FromNanoseconds(int((time.perf_counter() - started) * 1e9))
        diagnosis.elapsed.CopyFrom(elapsed)
        return diagnosis


def _execution_providers() -> list[str]:
    """ONNX Runtime's execution providers, preferred first; empty where it is not installed."""
    try:
        from onnxruntime import get_available_providers
    except ImportError:
        return []
    return list(get_available_providers())


def _storage(purpose: str, path: Path) -> pb.StorageDescription:
    """The file system of a directory, or of the nearest one above it that exists."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    usage = shutil.disk_usage(existing)
    return pb.StorageDescription(
        purpose=purpose,
        path=str(path),
        total_bytes=usage.total,
        available_bytes=usage.free,
        is_writable=os.access(existing, os.W_OK | os.X_OK),
    )


def _limits() -> pb.ProcessLimits:
    limits = pb.ProcessLimits()
    for field, kind in (
        ("open_files", resource.RLIMIT_NOFILE),
        ("processes", resource.RLIMIT_NPROC),
        ("address_space_bytes", resource.RLIMIT_AS),
        ("locked_memory_bytes", resource.RLIMIT_MEMLOCK),
    ):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            setattr(limits, field, soft)
    return limits


def judge(diagnosis: pb.SystemDiagnosis) -> Iterator[pb.InspectionFinding]:
    """What stands in the way of good work on the machine that is described."""
    yield from _judge_processor(diagnosis.processor)
    yield from _judge_memory(diagnosis.memory)
    for storage in diagnosis.storage:
        yield from _judge_storage(storage)
    yield from _judge_runtimes(diagnosis)
    if diagnosis.limits.HasField("open_files") and diagnosis.limits.open_files < _OPEN_FILES:
        yield findings.warning(
            "open-files-low",
            "limits",
            f"this process may open {diagnosis.limits.open_files} files",
            f"raise the limit to {_OPEN_FILES} or more with `ulimit -n`",
        )


def _judge_processor(processor: pb.ProcessorDescription) -> Iterator[pb.InspectionFinding]:
    if processor.architecture in ("x86_64", "AMD64") and processor.features:
        if "avx2" not in processor.features:
            yield findings.warning(
                "cpu-avx2-missing",
                "processor",
                "without AVX2 matrix products run several times slower",
                "use a processor made after 2015, or let the virtual machine pass its features through",
            )
        elif not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(processor.features):
            yield findings.info(
                "cpu-int8-missing", "processor", "without VNNI or AMX, int8 saves memory but gains little speed"
            )
    if processor.load_average > 1.5 * processor.usable_core_count:
        yield findings.warning(
            "cpu-busy",
            "processor",
            f"{processor.load_average:.1f} tasks compete for {processor.usable_core_count:g} cores",
            "figures measured now are too low; stop other work or wait",
        )
    if processor.usable_core_count < processor.logical_core_count:
        yield findings.info(
            "cpu-limited",
            "processor",
            f"this process may use {processor.usable_core_count:g} of {processor.logical_core_count} cores",
        )


def _judge_memory(memory: pb.MemoryDescription) -> Iterator[pb.InspectionFinding]:
    free = f"{memory.available_bytes / _GIB:.2f} GiB of memory are free"
    advice = "stop other programs, raise the container's limit, or serve a smaller precision"
    if memory.available_bytes < _CRITICAL_BYTES:
        yield findings.error("memory-exhausted", "memory", free, advice)
    elif memory.available_bytes < _COMFORTABLE_BYTES:
        yield findings.warning("memory-low", "memory", free, advice)
    if memory.swap_used_bytes > max(memory.swap_total_bytes // 4, 256 * _MIB):
        yield findings.warning(
            "swapping",
            "memory",
            f"{memory.swap_used_bytes / _GIB:.2f} GiB are swapped out: what was swapped answers slowly",
            advice,
        )


def _judge_storage(storage: pb.StorageDescription) -> Iterator[pb.InspectionFinding]:
    subject = f"storage: {storage.path}"
    if not storage.is_writable:
        yield findings.error(
            "storage-read-only", subject, f"this process may not write to {storage.path}", "choose another directory"
        )
    free = f"{storage.available_bytes / _GIB:.2f} GiB are free for {storage.purpose} files"
    advice = "delete old versions and checkpoints, or choose another directory"
    if storage.available_bytes < _CRITICAL_BYTES:
        yield findings.error("storage-full", subject, free, advice)
    elif storage.available_bytes < _COMFORTABLE_BYTES:
        yield findings.warning("storage-low", subject, free, advice)


def _judge_runtimes(diagnosis: pb.SystemDiagnosis) -> Iterator[pb.InspectionFinding]:
    if not diagnosis.execution_providers:
        yield findings.error(
            "onnxruntime-missing", "onnxruntime", "without ONNX Runtime nothing can be served here",
            "install onnxruntime, or onnxruntime-gpu beside an NVIDIA GPU",
        )  # fmt: skip
    elif diagnosis.accelerators and "CUDAExecutionProvider" not in diagnosis.execution_providers:
        yield findings.warning(
            "gpu-unused",
            "onnxruntime",
            f"{diagnosis.accelerators[0].model} is there, but this build of ONNX Runtime computes on the CPU only",
            "install onnxruntime-gpu in place of onnxruntime",
        )
    for accelerator in diagnosis.accelerators:
        if accelerator.temperature_celsius >= 85:
            yield findings.warning(
                "gpu-hot",
                f"accelerator {accelerator.index}",
                f"{accelerator.temperature_celsius:g} C: it will soon lower its clock",
                "check its cooling, or lower its power limit",
            )
