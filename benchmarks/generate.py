"""How fast tokens come: the same weights, prompts and lengths on ours and on each peer, in alternating rounds.

    python -m benchmarks.generate [--quick] [--environments DIR] [--rounds 3] [--only NAME …] [--device cuda]

Greedy, prompts of 32 random tokens, 64 new ones, ends of text ignored. A turn is two calls of a contestant, for one
new token and for 65: the difference is decoding. A prompt of 512 tokens (192 where the context is 256) with one new
token gives the rate of prefill. Weights are random, from a fixed seed. Everybody gets as many threads as there are
cores, spins as it does by default, and is stopped while another computes.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bundles import CHARACTERS, SHAPES, Shape, link_checkpoint, prompts, served, write_checkpoint
from benchmarks.contestants import PEER_CONTESTANTS, Contestant, Worker, own
from benchmarks.environments import DIRECTORY, NotAvailableError
from benchmarks.rates import Comparison, Result, compare, rate_table, ratio_table

PROMPT_TOKENS, NEW_TOKENS = 32, 64
BATCHES = (1, 8, 32)
TARGETS: Mapping[int, Mapping[int, float]] = {8: {1: 1.0, 8: 1.5, 32: 1.6}, 4: {1: 1.0, 8: 1.1, 32: 1.1}}
"""What our engine should reach of the best peer's rate: by bits, by batch."""
PREFILL = "prefill"
LEAST_S = 0.4
"""How long the longer calls of one measurement take together, at least."""


class Contest:
    """All contestants on one shape."""

    def __init__(self, shape: Shape, options: argparse.Namespace, directory: Path) -> None:
        self._shape = shape
        self._options = options
        self._new = 8 if options.quick else NEW_TOKENS
        self._least_s = 0.0 if options.quick else LEAST_S
        bundle, precisions = served(options.bundles or directory, shape, options.device)
        self._directories = {
            "bundle": bundle,
            "gpt2": link_checkpoint(bundle, directory / "gpt2"),
            "llama": write_checkpoint(directory / "llama", shape, "llama"),
        }
        everybody = [*own(precisions), *PEER_CONTESTANTS]
        chosen = [c for c in everybody if not options.only or any(part in c.title for part in options.only)]
        self.results = {contestant: _result(contestant) for contestant in chosen}
        self._workers: list[Worker] = []

    def run(self) -> list[Result]:
        """One round to warm up, then those that count, each in another order."""
        with ExitStack() as stack:
            for contestant in self.results:
                self._enter(contestant, stack)
            order = random.Random(0)
            for number in range(-1, self._options.rounds):
                order.shuffle(self._workers)
                for worker in list(self._workers):
                    self._turn(worker, number)
        return list(self.results.values())

    def _enter(self, contestant: Contestant, stack: ExitStack) -> None:
        """Starts a contestant and lets it load; one that cannot is out, with its reason."""
        order = {
            "directory": str(self._directories[contestant.family]),
            "precision": contestant.precision,
            "threads": len(os.sched_getaffinity(0)),
            "sequences": max(BATCHES),
            "context": self._shape.context,
            "device": self._options.device,
            "layer": contestant.layer,
        }
        result = self.results[contestant]
        try:
            worker = stack.enter_context(Worker(contestant, self._options.environments, self._options.log))
            answer = worker.ask("load", **order)
        except NotAvailableError as error:
            result.reason = str(error)
            say(f"{contestant.title}: not available: {error}")
            return
        result.version = answer["version"]
        self._workers.append(worker)
        say(f"{contestant.title}: loaded in {answer['seconds']:.1f} s")

    def _turn(self, worker: Worker, number: int) -> None:
        """Everything once. Round -1 warms up and does not count."""
        result = self.results[worker.contestant]
        try:
            figures = self._figures(worker, number)
        except NotAvailableError as error:
            result.reason = str(error)
            result.rounds.clear()
            worker.close()
            self._workers.remove(worker)
            say(f"{result.title}: out: {error}")
            return
        if number >= 0:
            for measure, rate in figures.items():
                result.rounds.setdefault(measure, []).append(rate)
            shown = ", ".join(f"{measure} {rate:,.0f}" for measure, rate in figures.items())
            say(f"{self._shape.name}, round {number + 1}, {result.title}: {shown} tokens/s")

    def _figures(self, worker: Worker, number: int) -> dict[str, float]:
        """Tokens/s: by batch, and of prefill."""
        seed = 1000 * (number + 1)

        def seconds(count: int, length: int, new: int) -> float:
            nonlocal seed
            seed += 1
            return float(worker.ask("generate", prompts=prompts(self._shape, count, length, seed), new=new)["seconds"])

        if number < 0:
            return {str(batch): seconds(batch, PROMPT_TOKENS, 4) for batch in (*BATCHES, 1)}
        # Who was stopped wakes up with cold caches: its first call would make prompts dear and decoding cheap.
        seconds(8, PROMPT_TOKENS, 4)
        figures = {}
        for batch in BATCHES:
            tokens, decode_s, total_s = 0, 0.0, 0.0
            # Short calls are repeated: a neighbour on the machine can make the longer of two the shorter one.
            while total_s < self._least_s or decode_s <= 0:
                first_s, all_s = seconds(batch, PROMPT_TOKENS, 1), seconds(batch, PROMPT_TOKENS, 1 + self._new)
                tokens, decode_s, total_s = tokens + batch * self._new, decode_s + all_s - first_s, total_s + all_s
            figures[str(batch)] = tokens / decode_s
        figures[PREFILL] = self._shape.prefill / min(seconds(1, self._shape.prefill, 1) for _ in range(2))
        return figures


def comparisons(results: Sequence[Result], prefill_tokens: int) -> list[tuple[str, Comparison]]:
    """Each target with its heading, where both sides are there."""
    found: list[tuple[str, str, float, tuple[int, ...]]] = [
        (f"decode, batch {batch}, {'4 bits' if bits == 4 else '8 bits and more'}", str(batch), target, (bits,))
        for bits, targets in TARGETS.items()
        for batch, target in targets.items()
    ]
    found.append((f"prefill of {prefill_tokens}", PREFILL, 1.0, (4, 8)))
    compared = [(heading, compare(results, measure, target, bits)) for heading, measure, target, bits in found]
    return [(heading, comparison) for heading, comparison in compared if comparison]


def report(shape: Shape, results: Sequence[Result]) -> None:
    """Both tables of a shape."""
    measures = {str(batch): f"decode, batch {batch}" for batch in BATCHES}
    measures[PREFILL] = f"prefill of {shape.prefill}"
    print(f"\n### {shape.name}\n")
    print("\n".join(rate_table(results, measures)))
    if compared := comparisons(results, shape.prefill):
        print()
        print("\n".join(ratio_table(compared)))


def say(text: str) -> None:
    """Progress, beside the tables."""
    print(text, file=sys.stderr, flush=True)


def _result(contestant: Contestant) -> Result:
    is_target = contestant.layer == "engine"
    return Result(title=contestant.title, is_ours=contestant.is_ours, is_target=is_target, bits=contestant.bits)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of few tokens: does it run at all?")
    parser.add_argument("--environments", type=Path, default=DIRECTORY, help="where the peers' environments are kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="contestants whose title has one of these parts")
    parser.add_argument("--shapes", nargs="+", help="those whose name has one of these parts")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="what the contestants print")
    parser.add_argument("--bundles", type=Path, help="where models are kept that an earlier benchmark made")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    # The large shape takes minutes however few its tokens.
    options.shapes = options.shapes or ([CHARACTERS.name] if options.quick else [shape.name for shape in SHAPES])
    return options


def main() -> None:
    options = _options()
    rounds = {}
    for shape in SHAPES:
        if any(part in shape.name for part in options.shapes):
            with tempfile.TemporaryDirectory() as name:
                results = Contest(shape, options, Path(name)).run()
            report(shape, results)
            rounds[shape.name] = {result.title: result.rounds for result in results}
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
