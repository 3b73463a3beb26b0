"""Serving on a CUDA device: first whether it is right, then how fast it is.

    python -m benchmarks.gpu [--json FILE] [--quick] [--device auto] [--precision fp16] [--seconds 1.0]

Checks: logits beside the processor's in fp32; replays beside eager runs at every step while lengths grow and prompts
are read in between; one row alone and in company; a prompt whole and in chunks; tokens chosen on the device and on the
host. Without a device the checks run in the processor's memory, in fp32, where all of them hold to the bit; nothing is
measured then. A check that must hold and does not ends with exit status 1.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from benchmarks.bundles import CHARACTERS, SHAPES, Shape
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import GRAPH_FILE, graph_file, write_bundle
from octavo.formats.tokenizer import Tokenizer
from services.inference.device import ATTENTION_KERNELS, Device, choose
from services.inference.device_graph import DeviceGraph
from services.inference.device_sampler import DeviceSampler
from services.inference.device_session import DeviceSession
from services.inference.sampler import Sampler, Sampling
from services.inference.served_graph import ServedGraph
from services.inference.session import Session
from services.trainer.half_model import write_half
from services.trainer.onnx_export import export_graph

BATCHES = (1, 8, 32, 128)
STEPS = 48
"""Decode steps of a check; each is compared."""
PARITY = 0.05
"""Most that a logit in 16 bits may differ, as a share of the logits' standard deviation."""
MISMATCHES = 0.001
"""Most tokens that the two samplers may choose differently: exp rounds in a way of its own on a device."""


@dataclass(frozen=True)
class Check:
    """What was found; `must_hold` is what texts depend on, the rest is for the documentation."""

    model: str
    name: str
    holds: bool
    found: str
    must_hold: bool = True


@dataclass(frozen=True)
class Bench:
    """A model's graphs: `precision`'s on the device, and fp32 on the processor."""

    shape: Shape
    directory: Path
    architecture: Architecture
    device: Device
    precision: str

    def graph(self, attention_kernels: int = 0) -> DeviceGraph:
        name = graph_file(self.precision)
        return DeviceGraph(self.directory / name, self.architecture, self.device, attention_kernels=attention_kernels)

    def session(self, slots: int, graph: DeviceGraph | None = None, **options: bool) -> DeviceSession:
        graph = graph or self.graph()
        return DeviceSession(graph, graph.new_cache(slots=slots, capacity=self.shape.context), **options)

    def processor(self, slots: int) -> Session:
        graph = ServedGraph(self.directory / GRAPH_FILE, self.architecture, threads=2, spin_us=0)
        return Session(graph, graph.new_cache(slots=slots, capacity=self.shape.context))

    def tokens(self, count: int, seed: int) -> NDArray[np.int64]:
        return np.random.default_rng(seed).integers(0, self.shape.vocab_size, count)


def write_model(directory: Path, shape: Shape, device: Device, precision: str) -> Bench:
    """Random weights, whose logits differ enough to be compared, and both graphs."""
    architecture = shape.architecture("gpt2")
    random = np.random.default_rng(0)
    tensors = {
        name: np.ones(size, np.float32)
        if ".ln_" in name and name.endswith("weight")
        else random.normal(0, 0.05, size).astype(np.float32)
        for name, size in architecture.tensors().items()
    }
    directory.mkdir()
    tokenizer = Tokenizer.train_characters("".join(map(chr, range(32, 96))))
    write_bundle(directory, architecture=architecture, tensors=tensors, tokenizer=tokenizer)
    export_graph(directory)
    if precision != "fp32":
        write_half(directory, precision)
    return Bench(shape, directory, architecture, device, precision)


# The checks.


def logits_of(session: Session | DeviceSession, bench: Bench, rows: int, steps: int) -> Iterator[NDArray[np.float32]]:
    """The logits [rows, vocab] of each step of rows of different lengths, all of whose tokens are given."""
    for row in range(rows):
        prompt = bench.tokens(3 + 5 * (row % 7), seed=row)
        session.prefill(row, prompt, 0)
        session.place(row, int(bench.tokens(1, seed=row)[0]), len(prompt))
    for step in range(steps):
        yield np.array(session.decode(rows))
        session.advance(rows, np.array([bench.tokens(steps, seed=row)[step] for row in range(rows)]))
        if rows < session.cache.slots:
            session.prefill(rows, bench.tokens(2 + step % 9, seed=step), 0)  # another shape between two replays


def parity(bench: Bench) -> Check:
    own, processors = bench.session(4), bench.processor(4)
    pairs = zip(logits_of(own, bench, 3, STEPS), logits_of(processors, bench, 3, STEPS), strict=True)
    worst = max(float(np.abs(one - other).max() / other.std()) for one, other in pairs)
    limit = PARITY if bench.precision != "fp32" else 0.0
    return Check(bench.shape.name, "logits as the processor's in fp32", worst <= limit, f"{worst:.1e} of their spread")


def replays(bench: Bench, rows: int) -> Check:
    graph = bench.graph()
    eager = logits_of(bench.session(rows + 1, graph, replays=False), bench, rows, STEPS)
    replayed = logits_of(bench.session(rows + 1, graph), bench, rows, STEPS)
    pairs = enumerate(zip(eager, replayed, strict=True))
    wrong = [step for step, (one, other) in pairs if one.tobytes() != other.tobytes()]
    found = f"{STEPS} steps" if not wrong else f"{len(wrong)} of {STEPS} steps differ, the first is {wrong[0]}"
    return Check(bench.shape.name, f"replays as eager runs, {rows} rows", not wrong, found)


def invariance(bench: Bench, attention: str, *, is_invariant: bool = False) -> Check:
    """Row 0 alone, in 8 and in 32."""
    graph = bench.graph(ATTENTION_KERNELS[attention])
    texts = [
        [logits[0] for logits in logits_of(bench.session(32, graph, is_invariant=is_invariant), bench, rows, 16)]
        for rows in (1, 8, 32)
    ]
    worst = max(float(np.abs(np.array(text) - texts[0]).max()) for text in texts[1:])
    name = f"a row alone as in company, attention: {attention}" + (", always all slots" if is_invariant else "")
    return Check(bench.shape.name, name, worst == 0, f"{worst:.1e}", must_hold=is_invariant)


def chunks(bench: Bench) -> Check:
    session, prompt = bench.session(1), bench.tokens(48, seed=1)
    whole = session.prefill(0, prompt, 0).copy()
    for start in range(0, 48, 16):
        pieces = session.prefill(0, prompt[start : start + 16], start)
    worst = float(np.abs(whole - pieces).max())
    return Check(bench.shape.name, "a prompt whole as in chunks", worst == 0, f"{worst:.1e}", must_hold=False)


SAMPLINGS = (
    Sampling(temperature=0),
    Sampling(temperature=0.8, seed=1),
    Sampling(temperature=0.8, top_k=40, seed=2),
    Sampling(temperature=1.2, top_p=0.6, seed=3),
    Sampling(temperature=1.0, min_p=0.2, seed=4),
)


def choices(bench: Bench) -> Check:
    """The same logits through both samplers."""
    rows = len(SAMPLINGS)
    session = bench.session(8)
    device, host = DeviceSampler(session, Sampler(slots=8, capacity=STEPS + 1)), Sampler(slots=8, capacity=STEPS + 1)
    for row, sampling in enumerate(SAMPLINGS):
        session.prefill(row, bench.tokens(5, seed=row), 0)
        session.place(row, 1, 5)
        for sampler in (device, host):
            sampler.place(row, sampling, STEPS + 1)
    differing = 0
    for _ in range(STEPS):
        logits = session.decode(rows)
        expected = host.sample(np.array(logits))
        tokens = device.sample(logits)
        differing += int((tokens != expected).sum())
        session.advance(rows, tokens)
    share = differing / (STEPS * rows)
    return Check(bench.shape.name, "tokens as the host chooses them", share <= MISMATCHES, f"{share:.1%} differ")


def ahead(bench: Bench) -> Check:
    """Steps begun before they are asked for, beside steps that are not."""
    texts = []
    for option in (False, True):
        session = bench.session(4, ahead=option)
        sampler = prepared(session, 3)
        text = []
        for _ in range(STEPS):
            tokens = sampler.sample(session.decode(3))
            session.advance(3, tokens)
            text.append(tokens.tolist())
        texts.append(text)
    return Check(bench.shape.name, "steps begun ahead as others", texts[0] == texts[1], f"{STEPS} steps")


def prepared(session: DeviceSession, rows: int) -> DeviceSampler:
    """Rows of 16 tokens that draw."""
    sampler = DeviceSampler(session, Sampler(slots=session.cache.slots, capacity=session.cache.capacity))
    for row in range(rows):
        session.prefill(row, np.arange(16) + row, 0)
        session.place(row, 1, 16)
        sampler.place(row, Sampling(temperature=0.8, top_k=40, seed=row), session.cache.capacity)
    return sampler


def made_sure(bench: Bench, check: Callable[[], Check]) -> Check:
    """What a check finds; that it cannot be made, where the runtime refuses."""
    try:
        return check()
    except Exception as error:  # the runtime raises its own classes
        return Check(bench.shape.name, "a check that could not be made", False, str(error)[:200])


def checks_of(bench: Bench) -> list[Check]:
    attentions = list(ATTENTION_KERNELS) if bench.device.kind == "cuda" else ["auto"]
    made: list[Callable[[], Check]] = [
        lambda: parity(bench),
        *(lambda rows=rows: replays(bench, rows) for rows in (1, 3, 8, 32)),
        *(lambda name=name: invariance(bench, name) for name in attentions),
        lambda: invariance(bench, "auto", is_invariant=True),
        lambda: chunks(bench),
        lambda: choices(bench),
        lambda: ahead(bench),
    ]
    found = []
    for check in made:
        found.append(made_sure(bench, check))
        print(f"  {found[-1].name}: {'holds' if found[-1].holds else 'DIFFERS'} ({found[-1].found})", flush=True)
    return found


# The measures.

WAYS: dict[str, dict[str, bool]] = {
    "eager": {"replays": False},
    "replayed": {},
    "replayed, begun ahead": {"ahead": True},
    "replayed, chosen on the host": {},
}


def step_rate(session: DeviceSession, sampler: DeviceSampler, rows: int, on_host: bool, seconds: float) -> float:
    """Decode steps per second."""
    host = Sampler(slots=session.cache.slots, capacity=session.cache.capacity)
    for row in range(rows):
        host.place(row, Sampling(temperature=0.8, top_k=40, seed=row), session.cache.capacity)
    steps, start = 0, perf_counter()
    while perf_counter() - start < seconds:
        for row in range(rows):
            session.place(row, 1, 16)
            host.place(row, Sampling(temperature=0.8, top_k=40, seed=row), session.cache.capacity)
            sampler.place(row, Sampling(temperature=0.8, top_k=40, seed=row), session.cache.capacity)
        for _ in range(min(128, session.cache.capacity - 20)):
            logits = session.decode(rows)
            session.advance(rows, host.sample(np.array(logits)) if on_host else sampler.sample(logits))
            steps += 1
    return steps / (perf_counter() - start)


def measured(bench: Bench, seconds: float, rounds: int) -> list[dict[str, object]]:
    """A row for each batch, with each way's tokens/s, rounds alternating, and a row for prompts."""
    graph, rows = bench.graph(), []
    for batch in BATCHES:
        sessions = {way: bench.session(batch, graph, **options) for way, options in WAYS.items()}
        samplers = {way: prepared(session, batch) for way, session in sessions.items()}
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for round_seconds in (0.2, *[seconds] * rounds):  # the first one captures
            for way, found in rates.items():
                found.append(step_rate(sessions[way], samplers[way], batch, "host" in way, round_seconds))
        steps = {way: statistics.median(found[1:]) for way, found in rates.items()}
        rows.append(
            {"model": bench.shape.name, "batch": batch}
            | {way: round(rate * batch) for way, rate in steps.items()}
            | {"step_ms": round(1000 / steps["replayed"], 3)}
        )
    return [*rows, {"model": bench.shape.name, "prefill": round(prefill_rate(bench, graph, seconds))}]


def prefill_rate(bench: Bench, graph: DeviceGraph, seconds: float) -> float:
    """Tokens per second of one prompt after another."""
    session, prompt = bench.session(1, graph), bench.tokens(bench.shape.prefill, seed=1)
    session.prefill(0, prompt, 0)
    tokens, start = 0, perf_counter()
    while perf_counter() - start < seconds:
        session.prefill(0, prompt, 0)
        tokens += len(prompt)
    return tokens / (perf_counter() - start)


def print_tables(precision: str, checks: list[Check], rows: list[dict[str, object]]) -> None:
    print(f"\n### Is it right? {precision}\n\n| model | check | holds | found |\n|---|---|---|---|")
    for check in checks:
        print(f"| {check.model} | {check.name} | {'yes' if check.holds else 'no'} | {check.found} |")
    print(f"\n### Decoding, tokens/s, {precision}\n\n| model | batch | {' | '.join(WAYS)} | ms a step, replayed |")
    print("|---|---|" + "---|" * (len(WAYS) + 1))
    for row in rows:
        if "batch" in row:
            figures = " | ".join(f"{row[way]:,}" for way in WAYS)
            print(f"| {row['model']} | {row['batch']} | {figures} | {row['step_ms']} |")
    print("\n### Reading a prompt, tokens/s\n\n| model | tokens/s |\n|---|---|")
    for row in rows:
        if "prefill" in row:
            print(f"| {row['model']} | {row['prefill']:,} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write what was found here")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the small model only, briefly")
    arguments = parser.parse_args()
    choice = choose(arguments.device)
    has_device = choice.device.kind == "cuda"
    precision = arguments.precision if has_device else "fp32"
    if not has_device:
        print(f"No GPU: {choice.reason or 'the processor was asked for'}. Checking in the processor's memory, in fp32.")
    checks: list[Check] = []
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        for shape in SHAPES if has_device and not arguments.quick else (CHARACTERS,):
            print(f"{shape.name} on {choice.device.name}", flush=True)
            bench = write_model(Path(name) / f"{shape.layers}", shape, choice.device, precision)
            checks += checks_of(bench)
            if has_device:
                rows += measured(bench, 0.3 if arguments.quick else arguments.seconds, arguments.rounds)
    if has_device:
        print_tables(precision, checks, rows)
    if arguments.json:
        found = {"device": choice.device.name, "checks": [asdict(check) for check in checks], "rates": rows}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if wrong := [check.name for check in checks if check.must_hold and not check.holds]:
        sys.exit(f"does not hold: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
