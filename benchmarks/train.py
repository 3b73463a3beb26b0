"""How low the loss gets in 20 and in 60 seconds of training on this machine's CPU, and nanoGPT's recipe beside it.

`python -m benchmarks.train`: Tiny Shakespeare by character, first 90 % to train, the rest to validate in one full
deterministic pass. Every contestant runs in a process of its own, with threads that sleep while they wait; rounds
alternate, so that a change of the machine's load meets all of them. A budget covers calibration and training; the
closing evaluation is timed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

DEFAULT_TEXT = Path(__file__).parents[1] / ".." / "shared" / "data" / "tinyshakespeare.txt"
SOURCE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def main() -> None:
    options = _options()
    if not options.text.is_file():
        sys.exit(f"{options.text} is not there; fetch {SOURCE} and name it with --text")
    if options.contestant:
        print(json.dumps(_run(options.contestant, options.text, options.seeds[0], options.threads)))
        return
    contestants = [f"octavo {seconds:g}" for seconds in options.budgets]
    if not options.without_nanogpt:
        contestants.append("nanogpt")
    results: list[dict[str, float | str]] = []
    for seed in options.seeds:
        for contestant in contestants:
            results.append(_in_own_process(contestant, options, seed))
            print(_row(results[-1]), flush=True)
    print(_table(contestants, results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT, help="the corpus, UTF-8")
    parser.add_argument("--budgets", type=float, nargs="+", default=[20.0, 60.0], help="seconds of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one round each")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 means all cores")
    parser.add_argument("--without-nanogpt", action="store_true", help="leave the yardstick out")
    parser.add_argument("--json", type=Path, help="write every result to this file")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_own_process(contestant: str, options: argparse.Namespace, seed: int) -> dict[str, float | str]:
    command = [sys.executable, "-m", "benchmarks.train", "--contestant", contestant, "--seeds", str(seed)]
    command += ["--text", str(options.text), "--threads", str(options.threads)]
    # As the trainer starts its workers.
    environment = os.environ | {"GOMP_SPINCOUNT": "2000"}
    finished = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])


def _run(contestant: str, path: Path, seed: int, threads: int) -> dict[str, float | str]:
    text = path.read_text(encoding="utf-8")
    symbols = sorted(set(text))
    index = {symbol: code for code, symbol in enumerate(symbols)}
    codes = np.array([index[symbol] for symbol in text], dtype=np.uint16)
    cut = int(0.9 * len(codes))
    train, validation = codes[:cut], codes[cut:]
    validation_bytes = len(text[cut:].encode())
    name, _, seconds = contestant.partition(" ")
    if name == "nanogpt":
        result = _run_nanogpt(train, validation, len(symbols), seed, threads)
    else:
        result = _run_octavo(float(seconds), train, validation, validation_bytes, len(symbols), seed, threads)
    return {"contestant": contestant, "seed": seed, **result}


def _run_octavo(  # noqa: PLR0917
    budget_s: float,
    train: np.ndarray,
    validation: np.ndarray,
    validation_bytes: int,
    vocab_size: int,
    seed: int,
    threads: int,
) -> dict[str, float]:
    from google.protobuf.duration_pb2 import Duration

    from octavo.v1 import trainer_pb2 as pb
    from services.trainer.loop import Training, configure_torch
    from services.trainer.machine import Machine
    from services.trainer.plan import architecture_of, resolve
    from services.trainer.text_facts import TextFacts

    machine = Machine.detect(device="cpu", threads=threads)
    configure_torch(threads=machine.threads)
    facts = TextFacts(train_tokens=len(train), validation_tokens=len(validation), vocab_size=vocab_size)
    asked = pb.TrainSpec(seed=seed, time_budget=Duration(nanos=0, seconds=int(budget_s)))
    start, cpu_start = time.perf_counter(), time.process_time()
    provisional = resolve(asked, facts, machine)
    training = Training(
        provisional,
        architecture_of(provisional),
        training_tokens=train,
        validation_tokens=validation,
        validation_bytes=validation_bytes,
    )
    step_s = training.measure_step_s()
    training.spec = resolve(asked, facts, machine, step_s=step_s, spent_s=time.perf_counter() - start)
    for step in range(1, training.spec.steps + 1):
        training.step(step)
    train_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    evaluation = training.evaluate(training.spec.steps)
    return {
        "parameters": training.model.architecture.parameters,
        "steps": training.spec.steps,
        "tokens": training.spec.steps * training.tokens_per_step,
        "train_s": train_s,
        "cpu_s": cpu_s,
        "evaluation_s": evaluation.duration.ToNanoseconds() / 1e9,
        "validation_loss": evaluation.validation_loss,
    }


def _run_nanogpt(
    train: np.ndarray, validation: np.ndarray, vocab_size: int, seed: int, threads: int
) -> dict[str, float]:
    import torch

    from benchmarks import nanogpt

    if threads:
        torch.set_num_threads(threads)
    start, cpu_start = time.perf_counter(), time.process_time()
    model = nanogpt.train(torch.from_numpy(train.astype(np.int64)), vocab_size, seed)
    train_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    loss = nanogpt.validation_loss(model, torch.from_numpy(validation.astype(np.int64)))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": nanogpt.ITERATIONS,
        "tokens": nanogpt.ITERATIONS * nanogpt.BATCH * nanogpt.CONTEXT,
        "train_s": train_s,
        "cpu_s": cpu_s,
        "evaluation_s": time.perf_counter() - start - train_s,
        "validation_loss": loss,
    }


def _row(result: dict[str, float | str]) -> str:
    tokens_per_s = float(result["tokens"]) / float(result["train_s"])
    return (
        f"{result['contestant']!s:<10} seed {result['seed']}  {result['steps']:>5} steps  "
        f"{result['train_s']:6.1f} s ({result['cpu_s']:.1f} s of CPU time)  {tokens_per_s:8,.0f} tokens/s  "
        f"loss {result['validation_loss']:.4f}"
    )


def _table(contestants: list[str], results: list[dict[str, float | str]]) -> str:
    lines = [
        "",
        "| contestant | parameters | rounds | training s, median | CPU s, median | tokens/s, median | "
        "validation loss, mean (least to most) |",
        "|---|---|---|---|---|---|---|",
    ]
    for contestant in contestants:
        rows = [r for r in results if r["contestant"] == contestant]
        losses = [float(r["validation_loss"]) for r in rows]
        train_s = statistics.median(float(r["train_s"]) for r in rows)
        cpu_s = statistics.median(float(r["cpu_s"]) for r in rows)
        speed = statistics.median(float(r["tokens"]) / float(r["train_s"]) for r in rows)
        spread = f"{min(losses):.4f} to {max(losses):.4f}"
        lines.append(
            f"| {contestant}{' s' if ' ' in contestant else ''} | {rows[0]['parameters']:,} | {len(rows)} | "
            f"{train_s:.1f} | {cpu_s:.1f} | {speed:,.0f} | {statistics.mean(losses):.4f} ({spread}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
