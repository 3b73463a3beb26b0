"""The first examples of a job as training will see them, found out in a process of its own: `python -m …preview`.

The process makes the corpus, or finds it, exactly as a worker does, and leaves it to the job. It reads an order from
standard input and answers with a response, or with what is wrong, on standard output.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from google.rpc.status_pb2 import Status

from octavo.addresses import Addresses
from octavo.client import Client
from octavo.errors import Internal, OctavoError, from_status
from octavo.formats.tokenizer import Tokenizer
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.corpus import Corpus, CorpusSpec
from services.trainer.corpus_cache import CorpusCache
from services.trainer.job_directory import Launch
from services.trainer.machine import Machine
from services.trainer.packing import Packing
from services.trainer.plan import resolve, settled
from services.trainer.text_facts import TextFacts
from services.trainer.token_rows import Examples, TokenRows

_EXIT_REFUSED: Final = 3
# Whoever trains meanwhile comes first.
_NICENESS: Final = 10


class Previewer:
    """Previews of one trainer, one at a time."""

    def __init__(self, root: str, launch: Launch) -> None:
        self._root = root
        self._launch = launch
        self._one = asyncio.Semaphore(1)

    async def preview(
        self, job: pb.Job, dataset: datasets_pb2.Dataset, machine: Machine, examples: int
    ) -> pb.PreviewExamplesResponse:
        """The first examples of a planned job on its dataset. Raises what a worker would end with."""
        order = {
            "job": base64.b64encode(job.SerializeToString()).decode(),
            "dataset": base64.b64encode(dataset.SerializeToString()).decode(),
            "launch": asdict(self._launch),
            "machine": asdict(machine),
            "examples": examples,
        }
        async with self._one:
            # From a thread, since that is CPython's own vfork; see Planner.
            process = await asyncio.to_thread(self._start)
            try:
                output, errors = await asyncio.to_thread(process.communicate, json.dumps(order).encode())
            finally:
                process.kill()
        if process.returncode == _EXIT_REFUSED:
            raise from_status(Status.FromString(output))
        if process.returncode:
            words = errors.decode(errors="replace").strip() or f"exit status {process.returncode}"
            raise Internal(Reason.REASON_INTERNAL, f"cannot preview: {words.splitlines()[-1]}")
        return pb.PreviewExamplesResponse.FromString(output)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "services.trainer.preview"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self._root, stdin=pipe, stdout=pipe, stderr=pipe)


def main() -> int:
    """Carry out the order on standard input; returns the exit status."""
    os.nice(_NICENESS)
    order = json.loads(sys.stdin.buffer.read())
    try:
        sys.stdout.buffer.write(_previewed(order).SerializeToString())
    except OctavoError as error:
        sys.stdout.buffer.write(error.to_status().SerializeToString())
        return _EXIT_REFUSED
    return 0


def _previewed(order: dict[str, Any]) -> pb.PreviewExamplesResponse:
    job = pb.Job.FromString(base64.b64decode(order["job"]))
    dataset = datasets_pb2.Dataset.FromString(base64.b64decode(order["dataset"]))
    launch = Launch(**order["launch"])
    cache = CorpusCache(Path(launch.corpora), launch.corpora_limit_bytes)
    with Client(Addresses(registry=launch.registry), api_key=launch.api_key) as client:
        corpus = cache.prepare(CorpusSpec.of(job.plan.train, dataset), client.download, lambda _: None)
    resolved = resolve(settled(job), TextFacts.of(corpus.facts), Machine(**order["machine"]))
    return previewed(corpus, resolved, order["examples"])


def previewed(corpus: Corpus, resolved: pb.TrainSpec, examples: int) -> pb.PreviewExamplesResponse:
    """The first examples of a corpus by a spec that is resolved with it."""
    facts, context_length = corpus.facts, resolved.architecture.context_length
    summary = pb.CorpusSummary(
        vocab_size=facts.vocab_size,
        training_tokens=facts.train_tokens,
        validation_tokens=facts.validation_tokens,
        training_rows=facts.train_rows,
        validation_rows=facts.validation_rows,
        dropped_rows=facts.dropped_rows,
        longest_row_tokens=facts.longest_row,
    )
    answer = pb.PreviewExamplesResponse(corpus=summary, context_length=context_length)
    if corpus.rows is None:
        windows = [
            corpus.train[at : at + context_length + 1] for at in range(0, examples * context_length, context_length)
        ]
        answer.examples.extend(_example(corpus.tokenizer, ids, learnt_from=1) for ids in windows if len(ids) > 1)
        return answer
    fitting, held_out = (Examples.of(rows, resolved.data, context_length) for rows in corpus.rows)
    answer.data.CopyFrom(resolved.data)
    answer.corpus.truncated_rows = fitting.truncated + held_out.truncated
    if fitting.dropped + held_out.dropped:
        answer.corpus.dropped_rows["it is longer than the context"] = fitting.dropped + held_out.dropped
    packing = Packing.of(fitting.lengths, context_length, seed=resolved.seed, is_packing=resolved.data.packing)
    answer.corpus.fill = packing.fill
    answer.examples.extend(_row_examples(corpus.tokenizer, corpus.rows[0], fitting, examples))
    return answer


def _row_examples(tokenizer: Tokenizer, rows: TokenRows, fitting: Examples, count: int) -> list[pb.Example]:
    begins = set(rows.begins.tolist())
    found = []
    for begin, end, first in zip(fitting.begins[:count], fitting.ends[:count], fitting.firsts[:count], strict=True):
        example = _example(tokenizer, fitting.tokens[begin:end], learnt_from=int(first - begin))
        example.is_truncated = fitting.are_rows and int(begin) not in begins
        found.append(example)
    return found


def _example(tokenizer: Tokenizer, ids: np.ndarray[Any, Any], *, learnt_from: int) -> pb.Example:
    return pb.Example(
        tokens=[
            pb.ExampleToken(id=code, text=tokenizer.decode([code]), bears_loss=place >= learnt_from)
            for place, code in enumerate(ids.tolist())
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
