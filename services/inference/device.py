"""Where models compute: on the processor, or on a CUDA device that answers.

Knows the runtime's providers and their options; nothing of graphs, caches or requests.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

CUDA = "CUDAExecutionProvider"
ATTENTION_KERNELS = {"auto": 0, "flash": 1, "efficient": 2, "math": 16}
"""The provider's bits for `sdpa_kernel`; 0 leaves the choice to the runtime."""


@dataclass(frozen=True, slots=True)
class Device:
    """`kind` is cpu or cuda, as the runtime names them; `number` tells the devices of a kind apart.

    `turn` is held by whoever computes on a CUDA device: while one thread captures a graph, an allocation of another
    thread would spoil it.
    """

    kind: str = "cpu"
    number: int = 0
    turn: Lock = field(default_factory=Lock, compare=False, repr=False)

    @property
    def name(self) -> str:
        """For people: `cpu`, `cuda:0`."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.number}"

    @property
    def replays(self) -> bool:
        """Whether its runs can be captured and replayed."""
        return self.kind == "cuda"

    def providers(self, *, replays: bool = False, attention_kernels: int = 0) -> list[tuple[str, dict[str, str]]]:
        """What a session is opened with.

        A provider that is not there is no reason for the runtime to refuse: it goes on without it. `open_session`
        does refuse. `attention_kernels` is the runtime's bit set `sdpa_kernel`; 0 leaves the choice to it.
        """
        if self.kind == "cpu":
            return [("CPUExecutionProvider", {})]
        options = {
            "device_id": str(self.number),
            "arena_extend_strategy": "kSameAsRequested",  # a cache is no power of two
            "use_tf32": "0",  # ten bits of mantissa where float32 was asked for
            "enable_cuda_graph": "1" if replays else "0",
        }
        if attention_kernels:
            options["sdpa_kernel"] = str(attention_kernels)
        return [(CUDA, options)]


def open_session(
    device: Device, model: str | bytes, options: ort.SessionOptions, **provider_options: Any
) -> ort.InferenceSession:
    """A session that computes on `device`, or none. Raises the runtime's own classes."""
    session = ort.InferenceSession(model, options, providers=device.providers(**provider_options), enable_fallback=0)
    if device.kind == "cuda" and CUDA not in session.get_providers():
        raise RuntimeError(f"the runtime left {device.name} out; its log says why")
    return session


@dataclass(frozen=True, slots=True)
class Choice:
    """A device, and why it is not a better one; `reason` is empty where nothing better was asked for."""

    device: Device
    reason: str = ""


PROCESSOR = Choice(Device())
"""Nothing better was asked for."""


def choose(word: str) -> Choice:
    """What `auto`, `cpu`, `cuda` or `cuda:1` comes down to on this machine: a CUDA device only where one answers."""
    if word == "cpu":
        return PROCESSOR
    device = Device("cuda", int(word.partition(":")[2] or 0))
    if reason := _obstacle(device):
        return Choice(Device(), f"not on {device.name}: {reason}")
    return Choice(device)


def _obstacle(device: Device) -> str:
    """Why nothing can be computed on a CUDA device; empty where it can."""
    if CUDA not in ort.get_available_providers():
        return f"this build of ONNX Runtime ({ort.__version__}) has no CUDA; install the extra `gpu` instead of `cpu`"
    try:
        with _quiet():
            ort.preload_dlls(directory="")  # CUDA's libraries where pip put them
            session = open_session(device, _sum_of_two(), ort.SessionOptions())
            answer = session.run(None, {"x": np.ones(1, np.float32)})[0]
    except Exception as error:  # the runtime raises its own classes
        return f"no device answers, or CUDA's libraries are missing: {_last_words(error)}"
    return "" if np.array_equal(answer, [2]) else f"it computed 1 + 1 = {answer}"


def _sum_of_two() -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "probe",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    opset = helper.make_opsetid("", 21)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString())


def _last_words(error: Exception) -> str:
    """What a message of the runtime says, without the names of its own functions around it."""
    if failure := re.search(r"CUDA failure \d+: [^;]*[^; ]", str(error)):
        return failure[0]
    lines = str(error).strip().splitlines()
    return lines[-1][-200:].strip() if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the runtime prints about libraries it does not find off the standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
