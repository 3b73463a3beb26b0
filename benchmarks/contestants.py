"""Who is measured, and how one is spoken to: a process of its own that is stopped while others have their turn."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.environments import PEERS, NotAvailableError, interpreter

ROOT = Path(__file__).parents[1]
OURS = "octavo"
FOUR_BITS = ("int4", "Q4_0")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One program at one precision. `family` is what it can read: the same weights, or others of the same size.

    `layer` is what of ours answers: the bare `session` or the `engine`.
    """

    name: str
    precision: str
    peer: str = ""
    family: str = "gpt2"
    layer: str = ""

    @property
    def is_ours(self) -> bool:
        return not self.peer

    @property
    def bits(self) -> int:
        """4, or 8 for eight and more: the two classes in which speeds are compared."""
        return 4 if self.precision in FOUR_BITS else 8

    @property
    def title(self) -> str:
        return f"{self.name} {self.precision}"


PEER_CONTESTANTS = tuple(
    Contestant(name=name, precision=precision, peer=peer, family=family)
    for name, peer, family, precisions in (
        ("transformers", "transformers", "gpt2", ("fp32", "bf16")),
        ("CTranslate2", "ctranslate2", "gpt2", ("fp32", "int8")),
        ("llama.cpp", "llama_cpp", "gpt2", ("F32", "Q8_0", "Q4_0")),
        ("onnxruntime-genai (llama)", "genai", "llama", ("fp32", "int8", "int4")),
        ("vLLM", "vllm", "gpt2", ("fp32", "bf16")),
    )
    for precision in precisions
)


def own(precisions: list[str]) -> list[Contestant]:
    """We, with the engine and without it."""
    return [
        Contestant(name=f"{OURS} {layer}", precision=precision, family="bundle", layer=layer)
        for precision in precisions
        for layer in ("session", "engine")
    ]


class Worker:
    """A contestant's process. Between its turns all its threads and children are stopped: none spins beside another."""

    def __init__(self, contestant: Contestant, environments: Path, log: Path) -> None:
        self.contestant = contestant
        python = Path(sys.executable) if contestant.is_ours else interpreter(contestant.peer, environments)
        worker = ROOT / "benchmarks" / "ours.py" if contestant.is_ours else PEERS / contestant.peer / "worker.py"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} if contestant.is_ours else dict(os.environ)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [str(python), "-P", str(PEERS / "host.py"), str(worker)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def ask(self, kind: str, **order: object) -> dict[str, Any]:
        """One turn. Raises NotAvailableError with the contestant's own words where it cannot."""
        self._signal(signal.SIGCONT)
        try:
            assert self._process.stdin
            assert self._process.stdout
            print(json.dumps({kind: order}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise NotAvailableError(f"its process ended with status {self._process.wait()}")
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NotAvailableError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process and whatever it has started."""
        if self._process.returncode is None:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
