"""What an inference server can be told."""

import os
import re
from dataclasses import dataclass

from octavo.addresses import PORTS
from octavo.serving import ProgramSettings, SettingsError
from octavo.v1.deployments_pb2 import Precision
from services.inference.memory import usable_bytes


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(ProgramSettings):
    """Settings of the inference server."""

    port: int = PORTS["inference"]
    max_message_bytes: int = 64 << 20
    """The largest message to receive, in bytes: a request's tensors travel in one."""
    slots: int = 32
    """Most sequences that run at the same time, for each served model."""
    waiting_limit: int = 256
    """Most sequences that wait for a slot, for each served model; more are refused."""
    wait_limit_s: float = 5.0
    """The longest that a sequence should wait for a slot, in seconds: by how long slots are held, fewer may wait than
    `waiting_limit` says, but always as many as there are slots."""
    context_limit: int = 8192
    """Most tokens of prompt and completion together, even where a model could take more."""
    cache_limit_bytes: int = 2 << 30
    """Most memory for the keys and values of one served model, in bytes; fewer slots are made to fit."""
    chunk_tokens: int = 256
    """Prompts are read in chunks of so many tokens, one chunk between two steps of those already running."""
    threads: int = 0
    """Threads of one model's computation; 0 takes the cores that this process may use."""
    spin_us: int = 100
    """How long these threads burn a core while they wait for one another, in microseconds, before they sleep; 0 lets
    them sleep at once. Waking takes about as long as a small operation."""
    device: str = "auto"
    """Where versions in 16 bits (fp16, bf16) compute: `cuda`, `cuda:1`, or `auto`, which takes the first CUDA device if
    one answers. Where none does, or with `cpu`, they are refused and the reason is logged. Other precisions compute on
    the processor anywhere."""
    device_invariant: bool = False
    """On a device, decodes all slots in every step and reads prompts one by one, so that a text's bits do not depend
    on how many others run: kernels are chosen by shape there. Costs what the empty slots cost."""
    device_attention: str = "auto"
    """On a device, which attention kernels may be taken: `flash`, `efficient`, `math`, or `auto` for the runtime's
    choice by shape. `make bench-gpu` says which of them give the same bits in every company."""
    device_ahead: bool = False
    """On a device, begins the next step while the tokens of the last one are attended to. A step in which rows come or
    go is computed twice."""
    messages_per_s: int = 500
    """Most stream messages to write per second and served model, first and last ones not counted: tokens that come
    faster travel together."""

    batch_rows: int = 32
    """Most rows of one run of a tensor model, where its version says nothing itself."""
    batch_delay_us: int = 0
    """How long a request for a tensor model waits for company, in microseconds, where its version says nothing itself.
    With 0 those share a run that came while the one before ran."""
    repository_control: bool = True
    """Lets clients of the Open Inference Protocol load and unload models: they create and delete deployments in the
    registry with this server's key. Switch it off where callers of inference may not do that."""
    tensor_model_limit_bytes: int = 4 << 30
    """The largest tensor model to load: all files of its version together, in bytes."""
    memory_limit_bytes: int = 0
    """Most memory for all served models of this process together: weights, caches and what working takes, in bytes. 0
    takes three quarters of the machine's memory, or of the container's limit."""
    keep_alive_s: float = 300.0
    """How long an on-demand model that nobody asks for stays in memory, in seconds; 0 keeps it until its memory is
    needed."""
    load_patience_s: float = 30.0
    """How long a request for an on-demand model waits until that is loaded, in seconds, before it is answered
    UNAVAILABLE."""
    precisions: str = "fp32"
    """What to serve where a deployment names no precision, and which of several served ones answers for a model's
    name: words such as `int8,fp32`, the preferred one first."""

    def __post_init__(self) -> None:
        """Refuses what cannot work. Raises SettingsError."""
        super().__post_init__()
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise SettingsError(f"{name} {value} is not between 1 and {most}")
        if not 0 <= self.batch_delay_us <= 10_000_000:
            raise SettingsError(f"batch_delay_us {self.batch_delay_us} is not between 0 and 10000000")
        if not 0 < self.wait_limit_s <= 86_400:
            raise SettingsError(f"wait_limit_s {self.wait_limit_s} is not between 0 and 86400")
        if self.memory_limit_bytes < 0 or self.keep_alive_s < 0 or not 0 < self.load_patience_s <= 3600:
            raise SettingsError(
                f"memory_limit_bytes {self.memory_limit_bytes} and keep_alive_s {self.keep_alive_s} are 0 or more, "
                f"load_patience_s {self.load_patience_s} is above 0 and at most 3600"
            )
        known = [name.removeprefix("PRECISION_").lower() for name in Precision.keys()[1:]]
        if unknown := [word for word in self.precisions.split(",") if word not in known]:
            raise SettingsError(f"precisions {unknown[0]!r} is none of {', '.join(known)}")
        if not 0 <= self.spin_us <= 1_000_000:
            raise SettingsError(f"spin_us {self.spin_us} is not between 0 and 1000000")
        if not _DEVICE.fullmatch(self.device):
            raise SettingsError(f"device {self.device!r} is none of auto, cpu, cuda, cuda:0, cuda:1 …")
        if self.device_attention not in ("auto", "flash", "efficient", "math"):
            raise SettingsError(f"device_attention {self.device_attention!r} is none of auto, flash, efficient, math")
        if not 0 <= self.threads <= 1024:
            raise SettingsError(f"threads {self.threads} is not between 0 and 1024; 0 takes what there is")

    @property
    def memory_budget_bytes(self) -> int:
        """Most memory for all served models together, resolved."""
        return self.memory_limit_bytes or usable_bytes() * 3 // 4

    @property
    def thread_count(self) -> int:
        """Threads of one model's computation, resolved."""
        return self.threads or len(os.sched_getaffinity(0))


_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,2})?")

_MOST = {
    "slots": 1024,
    "waiting_limit": 1_000_000,
    "context_limit": 1 << 20,
    "cache_limit_bytes": 1 << 50,
    "chunk_tokens": 1 << 16,
    "messages_per_s": 1_000_000,
    "batch_rows": 1 << 16,
    "max_message_bytes": (1 << 31) - 1,
    "tensor_model_limit_bytes": 1 << 50,
}
