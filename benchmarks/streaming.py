"""What scheduling and streaming cost: tokens/s of the bare session, of the engine around it, of gRPC around that.

    python -m benchmarks.streaming [--quick] [--rounds 5] [--streams 32] [--json FILE]

So many prompts of 32 random tokens at once, each continued by 200, again and again: the same work for every layer,
prompts included; the next batch begins when the last stream of the one before has ended. That is an answer of usual
length: 64 tokens are over in a tenth of a second on the small model, and what is measured then is how calls begin. The
bare session takes the most probable token; the engine and gRPC do so, and also draw from the 40 most probable at
temperature 0.8. Server and client are two processes on this machine. Rounds alternate between the layers, so that a
noisy neighbour disturbs all of them alike; shares are taken within a round, the median counts.
Measured is the precision of eight bits or more whose bare session is fastest here.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import uvloop

from benchmarks.bundles import CHARACTERS, SHAPES, Shape, prompts, served
from benchmarks.contestants import FOUR_BITS
from benchmarks.ours import GREEDY, SAMPLED, engine_completions, key, loaded, session_completions
from octavo import serving
from octavo.v1 import inference_pb2, inference_pb2_grpc
from services.inference.roster import Roster
from services.inference.served_model import LoadedModel, ServedModel
from services.inference.servicer import InferenceServicer
from services.inference.settings import InferenceSettings

PROMPT_TOKENS, NEW_TOKENS = 32, 200
SAMPLINGS = {"greedy": GREEDY, "sampled": SAMPLED}
ENGINE_TARGET, STREAM_TARGET = 0.90, 0.85
"""The share of the bare session's rate that the engine should keep, and of the engine's that gRPC should."""


@dataclass(frozen=True)
class Load:
    """What one layer does in one turn: so many streams at once, for at least so long."""

    shape: Shape
    streams: int
    seconds: float
    seed: int
    sampling: str = "greedy"
    precision: str = "fp32"

    def prompts(self, turn: int) -> list[list[int]]:
        """Never the same twice: a prefix that was met before would be no work."""
        return prompts(self.shape, self.streams, PROMPT_TOKENS, 1000 * self.seed + turn)

    async def rate(self, complete: Any) -> float:
        """Tokens per second of whole batches; `complete` answers how many tokens one brought."""
        tokens, turn, start = 0, 0, perf_counter()
        while not tokens or perf_counter() - start < self.seconds:
            tokens += await complete(self.prompts(turn))
            turn += 1
        return tokens / (perf_counter() - start)


class Layers:
    """The server's process: bare sessions and engines of every precision, loaded when they are first asked for."""

    def __init__(self, directory: Path, settings: InferenceSettings) -> None:
        self._directory = directory
        self._settings = settings
        self._models: dict[str, ServedModel] = {}
        self.roster = Roster()

    def served(self, precision: str) -> ServedModel:
        """The model at a precision; the roster shows the one that was asked for last."""
        if precision not in self._models:
            self._models[precision] = ServedModel(key(precision))
            self._models[precision].ready(
                loaded(self._directory, precision, self._settings, asyncio.get_running_loop())
            )
        self.roster.models.clear()
        self.roster.models[key(precision)] = self._models[precision]
        return self._models[precision]

    async def rate(self, layer: str, load: Load) -> float:
        """Tokens per second of the bare session or of the engine."""
        model = self.served(load.precision).loaded
        if not isinstance(model, LoadedModel):
            raise TypeError("served before it was loaded")

        async def complete(batch: list[list[int]]) -> int:
            if layer == "session":
                completions = session_completions(model, batch, NEW_TOKENS)
            else:
                completions = await engine_completions(model, batch, NEW_TOKENS, SAMPLINGS[load.sampling])
            return sum(map(len, completions))

        return await load.rate(complete)

    async def close(self) -> None:
        """Stops the engines."""
        for model in self._models.values():
            await model.drain(1)


async def serve(directory: Path) -> None:
    """The server process: says its address, then measures one layer after the other as it is told."""
    settings = InferenceSettings(port=0, slots=64, cache_limit_bytes=1 << 40)
    layers = Layers(directory, settings)

    async def find(reference: str) -> ServedModel:
        return layers.roster.find(reference)

    servicer = InferenceServicer(layers.roster, find)

    def register(server: grpc.aio.Server) -> None:
        inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield

    telemetry = serving.Telemetry.create("inference", serving.ProcessMetrics())
    service = serving.Service("inference", ("octavo.v1.Inference",), settings, telemetry, register, lifespan)
    async with serving.running(service) as addresses:
        print(addresses["inference"], flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            layer, load = order.pop("layer"), Load(SHAPES[order.pop("shape")], **order)
            print(json.dumps(await layers.rate(layer, load)), flush=True)
    await layers.close()


class Server:
    """The server process as its parent sees it."""

    def __init__(self, process: asyncio.subprocess.Process, stub: "inference_pb2_grpc.InferenceAsyncStub") -> None:
        self._process = process
        self._stub = stub

    async def rate(self, layer: str, load: Load) -> float:
        """Tokens per second of one layer: `session`, `engine` or `gRPC`."""
        if layer == "gRPC":
            return await load.rate(lambda batch: self._stream(batch, load.sampling))
        if not (self._process.stdin and self._process.stdout):
            raise AssertionError("started without pipes")
        order = {"layer": layer, **vars(load), "shape": SHAPES.index(load.shape)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server process has ended; its words are above")
        return float(json.loads(line))

    async def _stream(self, batch: list[list[int]], sampling: str) -> int:
        """All prompts at once, each as a stream of its own; the tokens that came."""
        return sum(await asyncio.gather(*(self._completion(prompt, sampling) for prompt in batch)))

    async def _completion(self, prompt: list[int], sampling: str) -> int:
        chosen = SAMPLINGS[sampling]
        parameters = inference_pb2.GenerationParameters(
            max_tokens=NEW_TOKENS,
            ignore_eos=True,
            temperature=chosen.temperature,
            top_k=chosen.top_k,
            seed=chosen.seed,
        )
        request = inference_pb2.StreamGenerateRequest(
            model=key("fp32").version, prompt_token_ids=prompt, parameters=parameters
        )
        return sum([len(event.chunk.token_ids) async for event in self._stub.StreamGenerate(request)])


@asynccontextmanager
async def started(directory: Path) -> AsyncIterator[Server]:
    """A server process over a bundle, and a connection to it."""
    command = (sys.executable, "-m", "benchmarks.streaming", "--serve", str(directory))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    if not (process.stdin and process.stdout):
        raise AssertionError("started without pipes")
    address = (await process.stdout.readline()).decode().strip()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Server(process, inference_pb2_grpc.InferenceStub(channel))
    process.stdin.close()
    await process.wait()


@dataclass
class Figures:
    """One model's rounds, tokens/s by (layer, sampling)."""

    shape: Shape
    precision: str
    rounds: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def median(self, layer: str, sampling: str) -> float:
        return statistics.median(self.rounds[layer, sampling])

    def share(self, layer: str, of: str, sampling: str) -> float:
        """The median share that `layer` keeps of what is below it, within a round."""
        below = self.rounds[of, "greedy" if of == "session" else sampling]
        return statistics.median(a / b for a, b in zip(self.rounds[layer, sampling], below, strict=True))


async def measure(shape: Shape, options: argparse.Namespace) -> Figures:
    """All layers of one model in turn; a round that is not counted comes first."""
    layers = [("session", "greedy"), *((layer, sampling) for layer in ("engine", "gRPC") for sampling in SAMPLINGS)]
    with tempfile.TemporaryDirectory() as name:
        bundle, precisions = served(options.bundles or Path(name), shape)
        eight_bits = [word for word in precisions if word not in FOUR_BITS]
        async with started(bundle) as server:
            figures = Figures(shape, await _fastest(server, shape, eight_bits, options))
            for number in range(-1, options.rounds):
                for place, (layer, sampling) in enumerate(layers):
                    seconds = options.seconds if number >= 0 else 0.0
                    seed = len(layers) * (number + 2) + place
                    load = Load(shape, options.streams, seconds, seed, sampling, figures.precision)
                    rate = await server.rate(layer, load)
                    if number >= 0:
                        figures.rounds.setdefault((layer, sampling), []).append(rate)
    return figures


async def _fastest(server: Server, shape: Shape, precisions: list[str], options: argparse.Namespace) -> str:
    """The precision whose bare session is fastest, by the second of two tries."""
    rates = {}
    for _ in range(2 if len(precisions) > 1 else 0):
        for word in precisions:
            load = Load(shape, options.streams, options.seconds, 0, precision=word)
            rates[word] = await server.rate("session", load)
    return max(rates, key=lambda word: rates[word], default=precisions[0])


async def report(options: argparse.Namespace) -> None:
    shapes = [CHARACTERS] if options.quick else SHAPES
    found = [await measure(shape, options) for shape in shapes]
    print(
        f"| {options.streams} streams, tokens/s | tokens | bare session | engine | keeps (to reach: "
        f"{ENGINE_TARGET:.0%}) | gRPC streams | keeps of the engine (to reach: {STREAM_TARGET:.0%}) |"
    )
    print("|---|---|---|---|---|---|---|")
    for figures in found:
        for sampling in SAMPLINGS:
            engine, streams = (figures.median(layer, sampling) for layer in ("engine", "gRPC"))
            print(
                f"| {figures.shape.name}, {figures.precision} | {sampling} "
                f"| {figures.median('session', 'greedy'):,.0f} "
                f"| {engine:,.0f} | {figures.share('engine', 'session', sampling):.0%} "
                f"| {streams:,.0f} | {figures.share('gRPC', 'engine', sampling):.0%} |"
            )
    if options.json:
        rounds = {f.shape.name: {" ".join(where): rates for where, rates in f.rounds.items()} for f in found}
        options.json.write_text(json.dumps(rounds, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0, help="least length of one measurement")
    parser.add_argument("--bundles", type=Path, help="where models are kept that an earlier benchmark made")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 0.1
    uvloop.run(serve(options.serve) if options.serve else report(options))


if __name__ == "__main__":
    main()
