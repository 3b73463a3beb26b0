"""Whole servers under open-loop load: ours over gRPC and HTTP, vLLM's and llama.cpp's; ours at twice its limit too.

    python -m benchmarks.serving [--quick] [--environments DIR] [--seconds 10] [--overload-seconds 60]

A GPT-2 of 124 M, prompts of 32 tokens, 64 new ones, greedy, streamed. Each server first shows its capacity: 32 callers,
each of whom asks again as soon as it is answered. Then requests arrive as a Poisson process at fractions of that.
Servers run one after the other, each with all cores, its client beside it. Latencies are a client's: to the first token
from the moment when the request was due, and from one message with tokens to the next.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.bundles import CHARACTERS, GPT2, Shape, link_checkpoint, served
from benchmarks.environments import DIRECTORY, NotAvailableError
from benchmarks.load import Call, Summary, arrivals, closed_loop, open_loop
from benchmarks.servers import Prompt, Server, Work, llama_cpp, octavo, vllm
from octavo.formats.tokenizer import Tokenizer

PROMPT_TOKENS, NEW_TOKENS, PROMPTS, CALLERS = 32, 64, 4096, 32
FRACTIONS = (0.5, 0.8, 1.0)
OVERLOAD = 2.0
GOODPUT_TARGET = 0.95
MEBIBYTE = 1 << 20

HEADINGS = (
    "server",
    "load",
    "requests/s",
    "tokens/s",
    "first token ms, p50",
    "p95",
    "p99",
    "between messages ms, p50",
    "p95",
    "p99",
    "refused",
    "errors",
)
Start = Callable[[], AbstractAsyncContextManager[Server]]


@dataclass(frozen=True)
class Line:
    """One load on one way into a server."""

    server: str
    load: str
    summary: Summary

    def __str__(self) -> str:
        summary = self.summary
        latencies = [
            f"{of(percent):,.1f}" for of in (summary.first_token_ms, summary.gap_ms) for percent in (50, 95, 99)
        ]
        figures = [f"{summary.offered_per_s:,.1f}", f"{summary.tokens_per_s:,.0f}", *latencies]
        counts = [str(len(summary.refusals)), _errors(summary)]
        return f"| {' | '.join([self.server, self.load, *figures, *counts])} |"


def _errors(summary: Summary) -> str:
    """How many, and the commonest in its own words."""
    if not summary.errors:
        return "0"
    (text, _), *_ = Counter(summary.errors).most_common(1)
    return f"{len(summary.errors)}: {text[:120]}".replace("|", "/")


async def measure(title: str, call: Call, options: argparse.Namespace) -> AsyncIterator[Line]:
    """Capacity, then the fractions of it."""
    await closed_loop(call, CALLERS, options.seconds / 4)  # warm
    summary = await closed_loop(call, CALLERS, options.seconds)
    yield Line(title, "capacity", summary)
    capacity_per_s = summary.tokens_per_s / options.new
    for fraction in FRACTIONS:
        due_s = arrivals(capacity_per_s * fraction, options.seconds, seed=1)
        if due_s:
            yield Line(title, f"{fraction:.0%}", await open_loop(call, due_s, options.seconds))


async def overload(title: str, server: Server, peak: float, options: argparse.Namespace) -> list[str]:
    """Twice as many requests as it can answer, for a minute; the judgement as a table. `peak` is in tokens/s."""
    before = server.process.memory_info().rss
    per_s = OVERLOAD * peak / options.new
    seconds = options.overload_seconds
    load = asyncio.create_task(open_loop(server.calls["gRPC"], arrivals(per_s, seconds, seed=2), seconds))
    await asyncio.sleep(seconds / 2)
    half_way = server.process.memory_info().rss
    summary = await load
    after = server.process.memory_info().rss
    delayed = sum(refusal.has_delay for refusal in summary.refusals)
    memory = [f"{size / MEBIBYTE:,.0f}" for size in (before, half_way, after)]
    rows = {
        f"{title} at {OVERLOAD:.0f}x for {seconds:.0f} s": (f"{per_s:,.1f} requests/s offered", ""),
        "goodput, tokens/s": (
            f"{summary.tokens_per_s:,.0f}, {summary.tokens_per_s / peak:.1%} of the peak {peak:,.0f}",
            f"{GOODPUT_TARGET:.0%}",
        ),
        "refused, with RetryInfo": (f"{len(summary.refusals):,}, {delayed:,}", "all with it"),
        "other errors": (_errors(summary), "0"),
        "memory of the server, MiB: before, half-way, after": (", ".join(memory), "flat"),
        "first token ms, p50 and p99 of what was answered": (
            f"{summary.first_token_ms(50):,.0f}, {summary.first_token_ms(99):,.0f}",
            "",
        ),
    }
    lines = [f"| {name} | {found} | {target} |" for name, (found, target) in rows.items()]
    return ["| overload | found | to reach |", "|---|---|---|", *lines]


async def run(title: str, start: Start, options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """One server's lines, and those of its overload if it is ours."""
    lines: list[Line] = []
    try:
        async with start() as server:
            for way, call in server.calls.items():
                async for line in measure(f"{title} {way}", call, options):
                    say(str(line))
                    lines.append(line)
            judgement: list[str] = []
            if "gRPC" in server.calls:
                peak = max(line.summary.tokens_per_s for line in lines if line.server.endswith("gRPC"))
                judgement = await overload(f"{title} gRPC", server, peak, options)
    except NotAvailableError as error:
        reason = f"not available: {error}".replace("|", "/")
        return [f"| {title} | {reason} {'|' * (len(HEADINGS) - 1)}"], []
    return [str(line) for line in lines], judgement


async def report(options: argparse.Namespace) -> None:
    shape = CHARACTERS if options.quick else GPT2
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bundle, precisions = served(options.bundles or directory, shape)
        asked = prompts(bundle, shape)
        work = Work(bundle, asked, options.new)
        plain = Work(link_checkpoint(bundle, directory / "checkpoint"), asked, options.new)
        starts: dict[str, Start] = {
            f"octavo {word}": partial(octavo, work, word, options.logs or directory, directory / "data" / word)
            for word in options.precisions or precisions[1:2]
        }
        starts["vLLM bf16"] = partial(vllm, plain, "bf16", options.environments, options.logs or directory)
        starts["llama.cpp Q8_0"] = partial(llama_cpp, plain, "Q8_0", options.environments, options.logs or directory)
        rows, judgements = [], []
        for title, start in starts.items():
            if not options.only or any(part in title for part in options.only):
                lines, judgement = await run(title, start, options)
                rows += lines
                judgements += judgement
    print(f"| {' | '.join(HEADINGS)} |")
    print("|---" * len(HEADINGS) + "|")
    print("\n".join(rows))
    print("\n" + "\n".join(judgements))


def prompts(bundle: Path, shape: Shape) -> list[Prompt]:
    """Words that are one token each, so that text and tokens are the same prompt; single symbols if need be."""
    tokenizer = Tokenizer.load(bundle)
    tokens = {code: tokenizer.decode([code]) for code in range(tokenizer.vocab_size)}
    words = [code for code, text in tokens.items() if text[:1] == " " and text[1:].isascii() and text[1:].isalpha()]
    words = words or [code for code, text in tokens.items() if len(text) == 1]
    chosen = np.random.default_rng(0).choice(words, (PROMPTS, PROMPT_TOKENS))
    return [Prompt(tokenizer.decode(ids), ids) for ids in chosen.tolist()]


def say(text: str) -> None:
    """Progress, beside the tables."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small model for moments: does it run at all?")
    parser.add_argument("--environments", type=Path, default=DIRECTORY, help="where the peers' environments are kept")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one load")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--new", type=int, default=NEW_TOKENS, help="tokens to each prompt")
    parser.add_argument("--precisions", nargs="+", default=[], help="ours; int8 unless said")
    parser.add_argument("--logs", type=Path, help="where to keep what the servers say")
    parser.add_argument("--bundles", type=Path, help="where models are kept that an earlier benchmark made")
    parser.add_argument("--only", nargs="+", default=[], help="servers whose title has one of these parts")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.overload_seconds = 2.0, 4.0
    # As Ctrl-C: whatever ends this ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    uvloop.run(report(options))


if __name__ == "__main__":
    main()
