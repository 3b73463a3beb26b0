"""How low the loss gets in so many seconds of a whole job on this machine's CPU, and nanoGPT's recipe beside it.

    python -m benchmarks.train [--seconds 12 60 180] [--seeds 1 2 3] [--without-nanogpt]

Tiny Shakespeare by character, the first 90 % to train, the rest to validate in one full deterministic pass. Ours is a
job of a running suite, from CreateJob to its last evaluation: starting the worker, making tokens, calibration,
telemetry and checkpoints included, only the export left out; its time budget is what the seconds leave beside that.
nanoGPT's recipe has a process of its own and is timed once that has loaded everything. Rounds alternate, so that a
change of the machine's load meets all of them. At last single steps of one shape (4 layers, 128 wide, 12 x 64 tokens)
alternate in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from google.protobuf.duration_pb2 import Duration

from benchmarks.contestants import ROOT
from benchmarks.servers import Process, until
from octavo.addresses import Addresses
from octavo.cli import ports
from octavo.client import AsyncClient
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb

DEFAULT_TEXT = ROOT / ".." / "shared" / "data" / "tinyshakespeare.txt"
SOURCE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
DATASET, MODEL = "datasets/shakespeare", "models/shakespeare"
AROUND_S = 4.0
"""What a job takes beside its time budget: a worker that starts, tokens, calibration."""
STEP_BLOCKS, STEPS_A_BLOCK = 12, 40
NANOGPT = "nanoGPT's recipe"

Result = dict[str, float | str]


def main() -> None:
    options = _options()
    if not options.text.is_file():
        sys.exit(f"{options.text} is not there; fetch {SOURCE} and name it with --text")
    if options.alone:
        print(json.dumps(ALONE[options.alone](options.text, options.seeds[0])))
        return
    results = asyncio.run(_compete(options))
    print(_table(results))
    if not options.without_nanogpt:
        print(_step_table(_in_own_process("steps", options.text, options.seeds[0])))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT, help="the corpus, UTF-8")
    parser.add_argument("--seconds", type=int, nargs="+", default=[12, 60, 180], help="seconds of a whole job")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one round each")
    parser.add_argument("--without-nanogpt", action="store_true", help="leave the yardstick out")
    parser.add_argument("--alone", choices=sorted(ALONE), help=argparse.SUPPRESS)
    return parser.parse_args()


async def _compete(options: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    async with _suite(options.text) as client:
        for seed in options.seeds:
            for seconds in options.seconds:
                results.append(await _job(client, seconds, seed))
                _say(results[-1], seed)
            if not options.without_nanogpt:
                results.append(await asyncio.to_thread(_in_own_process, "nanogpt", options.text, seed))
                _say(results[-1], seed)
    return results


@asynccontextmanager
async def _suite(text: Path) -> AsyncIterator[AsyncClient]:
    """Registry and trainer in a process, the corpus a dataset of theirs."""
    chosen = ports.free()
    environment = os.environ | {f"OCTAVO_{name.upper()}_PORT": str(port) for name, port in chosen.programs.items()}
    addresses = {name: chosen.addresses[name] for name in ("registry", "trainer")}
    environment |= {f"OCTAVO_{name.upper()}": address for name, address in addresses.items()}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data:
        environment |= {"OCTAVO_DATA_DIR": data, "OCTAVO_METRICS_PORT": str(chosen.metrics["trainer"])}
        command = [sys.executable, "-m", "services", "registry", "trainer"]
        with Process(command, environment | {"PYTHONPATH": str(ROOT)}, Path(data) / "suite.log") as process:
            async with AsyncClient(Addresses(**addresses)) as client:
                await until(process, lambda: _upload(client, text))
                await until(process, lambda: _answers(client))
                yield client


async def _upload(client: AsyncClient, text: Path) -> None:
    dataset = datasets_pb2.Dataset(blob=(await client.upload(text)).name)
    name = DATASET.removeprefix("datasets/")
    await client.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(dataset=dataset, dataset_id=name))


async def _answers(client: AsyncClient) -> None:
    await client.trainer.ListJobs(pb.ListJobsRequest())


async def _job(client: AsyncClient, seconds: int, seed: int) -> Result:
    """A job of about so many seconds, watched until its weights are saved and the export begins, then ended."""
    budget = Duration()
    budget.FromNanoseconds(int((seconds - AROUND_S) * 1e9))
    spec = pb.TrainSpec(dataset=DATASET, model=MODEL, seed=seed, time_budget=budget)
    start = perf_counter()
    job = await client.trainer.CreateJob(pb.CreateJobRequest(job=pb.Job(train=spec)))
    found: Result = {"contestant": f"octavo, {seconds} s"}
    training_s = 0.0
    async for event in client.trainer.WatchJob(pb.WatchJobRequest(name=job.name)):
        if event.HasField("plan"):
            found["parameters"] = event.plan.parameter_count
        elif event.HasField("metric"):
            found["tokens"] = event.metric.tokens
            training_s += event.metric.step_duration.ToNanoseconds() / 1e9
        elif event.HasField("evaluation"):
            found["validation_loss"] = event.evaluation.validation_loss
        elif event.HasField("progress") and event.progress.phase == pb.JOB_PHASE_EVALUATE:
            break
    found |= {"job_s": perf_counter() - start, "training_s": training_s}
    await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))
    return found


def _in_own_process(alone: str, text: Path, seed: int) -> Result:
    command = [sys.executable, "-m", "benchmarks.train", "--alone", alone, "--seeds", str(seed), "--text", str(text)]
    # As the trainer starts its workers.
    environment = os.environ | {"GOMP_SPINCOUNT": "2000"}
    finished = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: Result = json.loads(finished.stdout.splitlines()[-1])
    return result


def _codes(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Training and validation part by character, and how many characters there are."""
    text = path.read_text(encoding="utf-8")
    symbols, codes = np.unique(np.array(list(text)), return_inverse=True)
    cut = int(0.9 * len(codes))
    return codes[:cut].astype(np.int64), codes[cut:].astype(np.int64), len(symbols)


def _nanogpt(path: Path, seed: int) -> Result:
    """The whole recipe, and the loss that it reached."""
    import torch

    from benchmarks import nanogpt

    training, validation, vocab_size = _codes(path)
    start = perf_counter()
    model = nanogpt.train(torch.from_numpy(training), vocab_size, seed)
    training_s = perf_counter() - start
    loss = nanogpt.validation_loss(model, torch.from_numpy(validation))
    return {
        "contestant": NANOGPT,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": nanogpt.ITERATIONS * nanogpt.BATCH * nanogpt.CONTEXT,
        "job_s": perf_counter() - start,
        "training_s": training_s,
        "validation_loss": loss,
    }


def _steps(path: Path, seed: int) -> Result:
    """Milliseconds of a step, ours and nanoGPT's, in alternating blocks: wall-clock and of CPU time."""
    import torch

    from benchmarks import nanogpt
    from services.trainer.loop import configure_torch

    training, validation, vocab_size = _codes(path)
    configure_torch(threads=len(os.sched_getaffinity(0)))
    ours = _our_steps(training, validation, vocab_size, seed)
    theirs = nanogpt.steps(torch.from_numpy(training), vocab_size, seed)
    found: dict[str, list[tuple[float, float]]] = {"octavo": [], NANOGPT: []}
    for _ in range(STEP_BLOCKS):
        for name, steps in (("octavo", ours), (NANOGPT, theirs)):
            start, cpu_start = perf_counter(), process_time()
            for _ in range(STEPS_A_BLOCK):
                next(steps)
            taken = (perf_counter() - start, process_time() - cpu_start)
            found[name].append((taken[0] / STEPS_A_BLOCK * 1e3, taken[1] / STEPS_A_BLOCK * 1e3))
    return {name: statistics.median(wall for wall, _ in blocks[1:]) for name, blocks in found.items()} | {
        f"{name} cpu": statistics.median(cpu for _, cpu in blocks[1:]) for name, blocks in found.items()
    }


def _our_steps(training: np.ndarray, validation: np.ndarray, vocab_size: int, seed: int) -> Iterator[None]:
    """Optimizer steps of our recipe in nanoGPT's shape, one each time."""
    from services.trainer.loop import Training
    from services.trainer.machine import Machine
    from services.trainer.plan import architecture_of, resolve
    from services.trainer.text_facts import TextFacts

    facts = TextFacts(train_tokens=len(training), validation_tokens=len(validation), vocab_size=vocab_size)
    shape = pb.Architecture(layers=4, width=128, context_length=64)
    asked = pb.TrainSpec(architecture=shape, batch_size=12, steps=2000, seed=seed)
    spec = resolve(asked, facts, Machine.detect(device="cpu"))
    run = Training(
        spec,
        architecture_of(spec),
        training_tokens=training.astype(np.uint16),
        validation_tokens=validation.astype(np.uint16),
        validation_bytes=len(validation),
    )
    for step in range(1, spec.steps + 1):
        run.step(step)
        yield


ALONE = {"nanogpt": _nanogpt, "steps": _steps}


def _say(result: Result, seed: int) -> None:
    print(
        f"{result['contestant']}, seed {seed}: job {result['job_s']:.1f} s, training {result['training_s']:.1f} s, "
        f"{float(result['tokens']) / float(result['training_s']):,.0f} tokens/s, loss {result['validation_loss']:.4f}",
        flush=True,
    )


def _table(results: list[Result]) -> str:
    columns = ("parameters", "rounds", "job s, median", "training s, median", "tokens/s, median")
    lines = [
        "",
        f"| contestant | {' | '.join(columns)} | validation loss, mean (least to most) |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for contestant in dict.fromkeys(result["contestant"] for result in results):
        rows = [result for result in results if result["contestant"] == contestant]
        losses = [float(row["validation_loss"]) for row in rows]
        job_s, training_s = (statistics.median(float(row[name]) for row in rows) for name in ("job_s", "training_s"))
        speed = statistics.median(float(row["tokens"]) / float(row["training_s"]) for row in rows)
        lines.append(
            f"| {contestant} | {rows[0]['parameters']:,} | {len(rows)} | {job_s:.1f} | {training_s:.1f} "
            f"| {speed:,.0f} | {statistics.mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f}) |"
        )
    return "\n".join(lines)


def _step_table(found: Result) -> str:
    lines = ["", "| one step of 12 x 64 tokens, 4 layers of 128 | ms, median | ms of CPU time |", "|---|---|---|"]
    lines += [f"| {name} | {found[name]:.1f} | {found[f'{name} cpu']:.1f} |" for name in ("octavo", NANOGPT)]
    ratio = float(found["octavo"]) / float(found[NANOGPT])
    return "\n".join([*lines, f"| ratio (to reach: at most 1) | {ratio:.2f} | |"])


if __name__ == "__main__":
    main()
