"""Whole servers as processes of their own, started on free ports, ready when they answer, stopped at the end."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import psutil
from google.protobuf.field_mask_pb2 import FieldMask

from benchmarks.callers import GrpcCaller, HttpCaller, octavo_tokens, openai_tokens
from benchmarks.contestants import ROOT
from benchmarks.environments import PEERS, NotAvailableError, interpreter
from benchmarks.load import Call
from octavo.addresses import Addresses
from octavo.cli import ports
from octavo.client import AsyncClient
from octavo.formats.bundle import CONFIG_FILE, read_json
from octavo.v1.deployments_pb2 import Deployment, DeploymentTarget, Precision, UpdateDeploymentRequest
from octavo.v1.registry_pb2 import CreateVersionRequest, File, Version

DEPLOYMENT = "deployments/bench"
START_S = 180.0
"""How long a server may take until it answers."""


@dataclass(frozen=True)
class Prompt:
    """The same words as text and as tokens: not every server takes tokens."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Work:
    """What is asked of every server: so many new tokens to each of the prompts, by the model of a bundle."""

    bundle: Path
    prompts: Sequence[Prompt]
    new: int

    def prompt(self, number: int) -> Prompt:
        return self.prompts[number % len(self.prompts)]


@dataclass(frozen=True)
class Server:
    """A running server: its ways in by name, and the process that holds the model."""

    calls: Mapping[str, Call]
    process: psutil.Process


@asynccontextmanager
async def octavo(work: Work, precision: str, logs: Path, data: Path) -> AsyncIterator[Server]:
    """Registry, inference and gateway as three processes, with the bundle registered and deployed."""
    chosen = ports.free()
    where = {f"OCTAVO_{name.upper()}": address for name, address in chosen.addresses.items() if name != "gateway"}
    where |= {f"OCTAVO_{name.upper()}_PORT": str(port) for name, port in chosen.programs.items()}
    environment = {**os.environ, **where, "OCTAVO_DATA_DIR": str(data), "PYTHONPATH": str(ROOT)}
    # The same cache for every slot as the peers have: the model's whole context.
    environment["OCTAVO_INFERENCE_CACHE_LIMIT_BYTES"] = str(8 << 30)
    programs = {"registry": ("services", "registry"), "inference": ("services", "inference"), "gateway": ("gateway",)}
    async with AsyncExitStack() as stack:
        processes = {
            name: stack.enter_context(
                Process(
                    [sys.executable, "-m", *module],
                    environment | {"OCTAVO_METRICS_PORT": str(chosen.metrics[name])},
                    logs / f"{name}.log",
                )
            )
            for name, module in programs.items()
        }
        addresses = {name: address for name, address in chosen.addresses.items() if name != "gateway"}
        client = await stack.enter_async_context(AsyncClient(Addresses(**addresses)))
        call = GrpcCaller(client, DEPLOYMENT, [prompt.ids for prompt in work.prompts], work.new)
        over_http = HttpCaller(
            chosen.programs["gateway"],
            f"/api/v1/{DEPLOYMENT}:streamGenerate",
            lambda number: {
                "promptTokenIds": work.prompt(number).ids,
                "parameters": {"maxTokens": work.new, "temperature": 0, "ignoreEos": True},
            },
            octavo_tokens,
        )
        await until(processes["registry"], lambda: _deploy(client, work.bundle, precision))
        await until(processes["inference"], lambda: _answers(call))
        await until(processes["gateway"], lambda: _answers(over_http))
        yield Server({"gRPC": call, "HTTP": over_http}, psutil.Process(processes["inference"].pid))


@asynccontextmanager
async def vllm(work: Work, precision: str, environments: Path, logs: Path) -> AsyncIterator[Server]:
    """vLLM's server for OpenAI's protocol."""
    python, port = interpreter("vllm", environments), _free_port()
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    options = ["--model", str(work.bundle), "--served-model-name", "bench", "--dtype", dtype, "--max-num-seqs", "32"]
    options += ["--host", "127.0.0.1", "--port", str(port), "--disable-log-stats", "--no-enable-prefix-caching"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(python), "-P", "-m", "vllm.entrypoints.openai.api_server", *options]
    call = HttpCaller(
        port,
        "/v1/completions",
        lambda number: _openai(work.prompt(number).ids, work.new) | {"ignore_eos": True, "return_token_ids": True},
        openai_tokens,
    )
    async with _serving(command, environment, logs / "vllm.log", call) as server:
        yield server


@asynccontextmanager
async def llama_cpp(work: Work, precision: str, environments: Path, logs: Path) -> AsyncIterator[Server]:
    """llama-cpp-python's server for OpenAI's protocol. It answers one request at a time; the others wait."""
    python, port = interpreter("llama_cpp", environments), _free_port()
    end_id = read_json(work.bundle / CONFIG_FILE)["eos_token_id"]
    writer = [
        str(python),
        "-P",
        str(PEERS / "llama_cpp" / "gguf_file.py"),
        str(work.bundle),
        precision,
        str(logs),
    ]
    written = await asyncio.to_thread(subprocess.run, writer, capture_output=True, text=True, check=False)
    if written.returncode:
        raise NotAvailableError((written.stderr.strip().splitlines() or ["no GGUF file"])[-1])
    options = ["--model", written.stdout.strip(), "--host", "127.0.0.1", "--port", str(port), "--n_ctx", "1024"]
    # By default a new request ends the one that is being answered.
    options += ["--interrupt_requests", "False", "--n_threads", str(len(os.sched_getaffinity(0)))]
    command = [str(python), "-P", "-m", "llama_cpp.server", *options]
    call = HttpCaller(
        port,
        "/v1/completions",
        # It has no way to go on after the end of a text but to make that token impossible.
        lambda number: _openai(work.prompt(number).text, work.new) | {"logit_bias": {str(end_id): -100}},
        openai_tokens,
    )
    async with _serving(command, dict(os.environ), logs / "llama_cpp.log", call) as server:
        yield server


class Process:
    """A program and whatever it starts; its words go into `log`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, env=environment, cwd=log.parent, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def require_alive(self) -> None:
        """Raises NotAvailableError with its last words."""
        if self._process.poll() is not None:
            words = self._log.read_text(errors="replace").strip().splitlines() or [""]
            raise NotAvailableError(f"exit status {self._process.returncode}: {words[-1][:200]}")

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


@asynccontextmanager
async def _serving(
    command: Sequence[str], environment: Mapping[str, str], log: Path, call: Call
) -> AsyncIterator[Server]:
    with Process(command, environment, log) as process:
        await until(process, lambda: _answers(call))
        yield Server({"HTTP": call}, psutil.Process(process.pid))


async def until(process: Process, attempt: Callable[[], Awaitable[None]]) -> None:
    """Tries until it works. Raises NotAvailableError when the process ends, or takes too long."""
    deadline_s = perf_counter() + START_S
    error: Exception | None = None
    while perf_counter() < deadline_s:
        process.require_alive()
        try:
            return await attempt()
        except Exception as found:  # not up yet: whatever a protocol raises for that
            error = found
            await asyncio.sleep(0.2)
    raise NotAvailableError(f"no answer within {START_S:.0f} s: {error}")


async def _answers(call: Call) -> None:
    if not sum([count async for count in call(0)]):
        raise ValueError("an answer without a token")


async def _deploy(client: AsyncClient, bundle: Path, precision: str) -> None:
    files = [
        File(path=path.name, blob=(await client.upload(path)).name, size_bytes=path.stat().st_size)
        for path in sorted(await asyncio.to_thread(lambda: list(bundle.iterdir())))
    ]
    version = await client.registry.CreateVersion(
        CreateVersionRequest(parent="models/bench", version=Version(files=files))
    )
    target = DeploymentTarget(
        version=version.name, weight=1, precision=Precision.Value(f"PRECISION_{precision.upper()}")
    )
    await client.deployments.UpdateDeployment(
        UpdateDeploymentRequest(
            deployment=Deployment(name=DEPLOYMENT, targets=[target]),
            allow_missing=True,
            update_mask=FieldMask(paths=["targets"]),
        )
    )


def _openai(prompt: object, new: int) -> dict[str, object]:
    return {"model": "bench", "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True}


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])
