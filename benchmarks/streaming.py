"""What streaming costs: tokens per second of the bare session, of the engine around it, and over gRPC.

    python -m benchmarks.streaming [--json FILE] [--rounds 5] [--seconds 1.0]

Server and client are two processes on this machine. Rounds alternate between the three, so that a noisy neighbour
disturbs all of them alike; the median round counts. Weights are random: speed does not depend on their values.
"""

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import grpc
import numpy as np
import uvloop

from octavo import serving
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import write_bundle
from octavo.formats.conformance import Conformance, PrecisionVectors, Vector
from octavo.formats.tokenizer import Tokenizer
from octavo.v1 import inference_pb2, inference_pb2_grpc
from octavo.v1.deployments_pb2 import Precision
from services.inference.loader import Loader
from services.inference.outbox import Outbox
from services.inference.rehearsal import Rehearsal
from services.inference.roster import Roster
from services.inference.sampler import Sampling
from services.inference.served_graph import ServedGraph
from services.inference.served_model import Key, LoadedModel, ServedModel
from services.inference.servicer import InferenceServicer
from services.inference.session import Session
from services.inference.settings import InferenceSettings
from services.trainer.onnx_export import export_graph

PROMPT_TOKENS, COMPLETION_TOKENS = 32, 200
STREAMS = (1, 16)
SHAPES = {
    "0.8 M": {"width": 128, "layers": 4, "heads": 4},
    "10.7 M": {"width": 384, "layers": 6, "heads": 6},
}
KEY = Key("models/bench/versions/1", Precision.PRECISION_FP32)
PROMPT = list(range(PROMPT_TOKENS))


def write_random_bundle(directory: Path, shape: dict[str, int]) -> None:
    """A gpt2 over 65 symbols with context 256, its graphs, and what it answers on this machine as its vectors."""
    tokenizer = Tokenizer.train_characters("".join(map(chr, range(32, 97))))
    architecture = Architecture.derive("gpt2", vocab_size=tokenizer.vocab_size, context_length=256, **shape)
    random = np.random.default_rng(0)
    tensors = {
        name: np.ones(size, np.float32)
        if ".ln_" in name and name.endswith("weight")
        else random.normal(0, 0.08, size).astype(np.float32)
        for name, size in architecture.tensors().items()
    }
    write_bundle(directory, architecture=architecture, tensors=tensors, tokenizer=tokenizer)
    graph = export_graph(directory)
    served = ServedGraph(graph, architecture, threads=1, allow_spinning=False)
    session = Session(served, served.new_cache(slots=1, capacity=256))
    greedy, log_probabilities = Rehearsal(session, chunk_tokens=256).complete(PROMPT, 4)
    vector = Vector(prompt=tuple(PROMPT), greedy=tuple(greedy), log_probabilities=tuple(log_probabilities))
    vectors = PrecisionVectors(graph=graph.name, tolerance=1e-3, vectors=(vector,))
    Conformance({"fp32": vectors}).write(directory)


def bare_rate(directory: Path, settings: InferenceSettings, streams: int, seconds: float) -> float:
    """Tokens per second of decode steps and argmax alone: the floor that nothing around it can beat."""
    architecture = Architecture.from_config(json.loads((directory / "config.json").read_text()))
    graph = ServedGraph(
        directory / "model.onnx",
        architecture,
        threads=min(settings.thread_count, architecture.heads),
        allow_spinning=settings.allow_spinning,
    )
    session = Session(graph, graph.new_cache(slots=streams, capacity=256))
    tokens, start = 0, perf_counter()
    while perf_counter() - start < seconds:
        for row in range(streams):
            session.place(row, 1, PROMPT_TOKENS)
        for length in range(PROMPT_TOKENS, PROMPT_TOKENS + COMPLETION_TOKENS):
            session.advance(streams, session.decode(streams, length).argmax(axis=1))
        tokens += streams * COMPLETION_TOKENS
    return tokens / (perf_counter() - start)


async def rate(complete: Callable[[int], Awaitable[int]], streams: int, seconds: float) -> float:
    """Tokens per second of so many callers, each of whom asks again as soon as it is answered."""

    async def caller(number: int) -> int:
        tokens = 0
        while perf_counter() - start < seconds:
            tokens += await complete(number)
        return tokens

    start = perf_counter()
    tokens = sum(await asyncio.gather(*map(caller, range(streams))))
    return tokens / (perf_counter() - start)


def parameters(number: int) -> inference_pb2.GenerationParameters:
    return inference_pb2.GenerationParameters(max_tokens=COMPLETION_TOKENS, seed=number, temperature=0.8, top_k=40)


async def engine_complete(loaded: LoadedModel, number: int) -> int:
    """One completion straight from the engine, in one delivery."""
    sampling = Sampling(temperature=0.8, top_k=40, seed=number)
    prompt = np.array(PROMPT, np.int64)
    outbox = Outbox(is_streaming=False)
    sequence = loaded.sequence(prompt, parameters(number), sampling, outbox, priority=0, deadline_s=None)
    loaded.engine.submit(sequence)
    return len((await outbox.take()).token_ids)


async def serve(directory: Path, settings: InferenceSettings) -> None:
    """The server process: says its address, then measures its engine or its bare session whenever it is told."""
    logger = logging.getLogger("octavo.inference")
    loader = Loader(settings, asyncio.get_running_loop(), logger)
    roster = Roster()
    roster.models[KEY] = served = ServedModel(KEY)
    served.ready(loaded := loader.load(directory, KEY))

    async def find(reference: str) -> ServedModel:
        return roster.find(reference)

    servicer = InferenceServicer(roster, find)

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
            if order["layer"] == "bare":
                answer = bare_rate(directory, settings, order["streams"], order["seconds"])
            else:
                answer = await rate(lambda number: engine_complete(loaded, number), order["streams"], order["seconds"])
            print(json.dumps(answer), flush=True)
    await served.drain(1)


class Server:
    """The server process as its parent sees it."""

    def __init__(self, process: asyncio.subprocess.Process, stub: "inference_pb2_grpc.InferenceAsyncStub") -> None:
        self._process = process
        self._stub = stub
        self.messages = 0

    async def measure(self, layer: str, streams: int, seconds: float) -> float:
        """Tokens per second of one layer: `bare`, `engine` or `gRPC`."""
        if layer == "gRPC":
            return await rate(self._stream_complete, streams, seconds)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"layer": layer, "streams": streams, "seconds": seconds}).encode() + b"\n")
        return float(json.loads(await self._process.stdout.readline()))

    async def _stream_complete(self, number: int) -> int:
        request = inference_pb2.StreamGenerateRequest(
            model=KEY.version, prompt_token_ids=PROMPT, parameters=parameters(number)
        )
        tokens = 0
        async for event in self._stub.StreamGenerate(request):
            tokens += len(event.chunk.token_ids)
            self.messages += 1
        return tokens


@asynccontextmanager
async def started(directory: Path, threads: int) -> AsyncIterator[Server]:
    """A server process over a bundle, and a connection to it."""
    command = (sys.executable, "-m", "benchmarks.streaming", "--serve", str(directory), "--threads", str(threads))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin
    assert process.stdout
    address = (await process.stdout.readline()).decode().strip()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Server(process, inference_pb2_grpc.InferenceStub(channel))
    process.stdin.close()
    await process.wait()


async def measure(model: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of one model's table."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        write_random_bundle(Path(name), SHAPES[model])
        async with started(Path(name), arguments.threads) as server:
            for streams in STREAMS:
                rounds: dict[str, list[float]] = {"bare": [], "engine": [], "gRPC": []}
                for layer in rounds:
                    await server.measure(layer, streams, 0.2)  # warm
                for _ in range(arguments.rounds):
                    for layer, rates in rounds.items():
                        rates.append(await server.measure(layer, streams, arguments.seconds))
                kept = [over / own for over, own in zip(rounds["gRPC"], rounds["engine"], strict=True)]
                rates = {f"{layer}_tokens_per_s": round(statistics.median(r)) for layer, r in rounds.items()}
                rows.append({"model": model, "streams": streams, **rates, "kept": round(statistics.median(kept), 3)})
    return rows


async def report(arguments: argparse.Namespace) -> None:
    rows = [row for model in SHAPES for row in await measure(model, arguments)]
    print("| model, fp32 | streams | bare session, tokens/s | engine, tokens/s | over gRPC, tokens/s | gRPC keeps |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        bare, engine, over = (row[f"{layer}_tokens_per_s"] for layer in ("bare", "engine", "gRPC"))
        print(f"| {row['model']} | {row['streams']} | {bare:,} | {engine:,} | {over:,} | {row['kept']:.0%} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--threads", type=int, default=0, help="threads of the model; 0 takes the server's default")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        uvloop.run(serve(arguments.serve, InferenceSettings(port=0, threads=arguments.threads)))
    else:
        uvloop.run(report(arguments))


if __name__ == "__main__":
    main()
