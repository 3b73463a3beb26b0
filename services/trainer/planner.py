"""Plans before anything runs: looks the dataset up, measures the machine once, and resolves the spec with both."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from octavo.client import AsyncClient
from octavo.errors import Internal, InvalidArgument, NotFound
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.data_spec import resolve_data
from services.trainer.export_plan import plan_export
from services.trainer.machine import Machine
from services.trainer.neighbourhood import Neighbourhood, surroundings
from services.trainer.plan import estimate_text, plan, resolve_tokenizer
from services.trainer.preview import Previewer
from services.trainer.text_facts import TextFacts

# Loading torch takes two seconds on a slow disk, ten on a very slow one.
DETECT_TIMEOUT_S: Final = 60.0
_USUAL_EXAMPLES, _MOST_EXAMPLES = 3, 20

_ASSUMED_BYTES: Final = 1 << 30

_DETECT: Final = """
import dataclasses, json, sys
from services.trainer.machine import Machine
print(json.dumps(dataclasses.asdict(Machine.detect(threads=int(sys.argv[1])))))
"""


class Planner:
    """Plans of one trainer. The machine is looked at in a process of its own, so that torch stays out of this one."""

    def __init__(
        self, client: AsyncClient, root: str, threads: int, neighbourhood: Neighbourhood, previewer: Previewer
    ) -> None:
        self._client = client
        self._previewer = previewer
        self._neighbourhood = neighbourhood
        self._root = root
        self._threads = threads
        self._machine: asyncio.Task[Machine] | None = None
        self._looker: subprocess.Popen[bytes] | None = None
        self._is_closing = False

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Looks at the machine in the background, so that the first plan need not wait for it."""
        self._machine = asyncio.create_task(self._detect(), name="detect-machine")
        try:
            yield
        finally:
            self._is_closing = True
            if self._looker is not None:
                self._looker.kill()
            await asyncio.gather(self._machine, return_exceptions=True)

    async def plan(self, job: pb.Job, wrong: Mapping[str, str] | None = None) -> pb.Plan:
        """What a job comes to, its resources named by version. Raises what the registry raises.

        InvalidArgument names what is `wrong` already together with everything that the plan finds wrong.
        """
        faults = dict(wrong or {})
        if faults and not job.HasField("train"):
            raise InvalidArgument.fields(faults)
        if job.HasField("export"):
            return await plan_export(self._client, job.export, await self._detected())
        machine = await self._detected()
        dataset, missing = await self._dataset(job.train, faults)
        spec = pb.TrainSpec()
        spec.CopyFrom(job.train)
        try:
            facts = _resolve_text(spec, dataset)
            around = await surroundings(self._client, spec, self._neighbourhood)
            answer = plan(spec, facts, machine, around=around)
        except InvalidArgument as error:
            faults = error.violations | faults
        if faults:
            raise InvalidArgument.fields(faults)
        if missing is not None:
            raise missing
        return answer

    async def _dataset(
        self, spec: pb.TrainSpec, faults: dict[str, str]
    ) -> tuple[datasets_pb2.Dataset | None, NotFound | None]:
        """The dataset, or why there is none: alone that is NotFound, among other faults one more of them."""
        if "job.train.dataset" in faults:
            return None, None
        try:
            return await self._client.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name=spec.dataset)), None
        except NotFound as error:
            if faults:
                faults["job.train.dataset"] = error.message
            return None, error

    async def preview(self, request: pb.PreviewExamplesRequest) -> pb.PreviewExamplesResponse:
        """The first examples of a planned train job; InvalidArgument where it is another, or too many are asked for."""
        if not request.job.HasField("train"):
            raise InvalidArgument.field("job", "only a train job has examples; set job.train")
        if not 0 <= request.examples <= _MOST_EXAMPLES:
            raise InvalidArgument.field(
                "examples", f"{request.examples}; 1 to {_MOST_EXAMPLES}, or 0 for {_USUAL_EXAMPLES}"
            )
        name = datasets_pb2.GetDatasetRequest(name=request.job.plan.train.dataset)
        dataset = await self._client.datasets.GetDataset(name)
        machine, count = await self._detected(), request.examples or _USUAL_EXAMPLES
        return await self._previewer.preview(request.job, dataset, machine, count)

    async def _detected(self) -> Machine:
        if self._machine is None or (self._machine.done() and self._machine.exception()):
            self._machine = asyncio.create_task(self._detect(), name="detect-machine")
        return await asyncio.shield(self._machine)

    async def _detect(self) -> Machine:
        # From a thread, since that is CPython's own vfork: uvloop forks, and gRPC's fork handlers kill some children.
        return await asyncio.to_thread(self._look)

    def _look(self) -> Machine:
        with subprocess.Popen(
            [sys.executable, "-c", _DETECT, str(self._threads)],
            cwd=self._root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            self._looker = process
            try:
                output, errors = process.communicate(timeout=0 if self._is_closing else DETECT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        if process.returncode:
            words = errors.decode(errors="replace").strip() or f"exit status {process.returncode}"
            raise Internal(Reason.REASON_INTERNAL, f"cannot look at this machine: {words.splitlines()[-1]}")
        return Machine(**json.loads(output))


def _resolve_text(spec: pb.TrainSpec, dataset: datasets_pb2.Dataset | None) -> TextFacts:
    """Names the version of the dataset, fills in how it is read, and says how much text it comes to.

    Without a dataset, a large one is assumed, so that what does not depend on it is found nevertheless.
    """
    if dataset is None:
        spec.tokenizer.CopyFrom(resolve_tokenizer(spec.tokenizer, _ASSUMED_BYTES))
        return estimate_text(_ASSUMED_BYTES, spec)
    spec.dataset = f"{dataset.name.partition('/versions/')[0]}/versions/{dataset.version}"
    data = resolve_data(spec.data, dataset)
    if data is not None:
        spec.data.CopyFrom(data)
    size = dataset.statistics.size_bytes
    spec.tokenizer.CopyFrom(resolve_tokenizer(spec.tokenizer, size))
    facts = text_facts(dataset, estimate_text(size, spec), spec)
    lines = 0 if data is not None else dataset.statistics.rows
    return replace(facts, size_bytes=size, lines=lines)


def text_facts(dataset: datasets_pb2.Dataset, estimate: TextFacts, spec: pb.TrainSpec) -> TextFacts:
    """What the registry counted, as tokens: exact for the characters of a text, estimated for BPE and for rows."""
    counted, facts = dataset.statistics, estimate
    if spec.tokenizer.kind == pb.TOKENIZER_KIND_CHARACTER and counted.characters:
        part = estimate.train_tokens / max(1, estimate.train_tokens + estimate.validation_tokens)
        train_tokens = int(counted.characters * part)
        facts = TextFacts(
            train_tokens=train_tokens,
            validation_tokens=counted.characters - train_tokens,
            vocab_size=counted.symbols,
        )
    if not spec.HasField("data"):
        return facts
    # Rows are rarely twice as long as their mean. One more symbol ends an answer.
    mean = (facts.train_tokens + facts.validation_tokens) / max(1, counted.rows)
    return replace(facts, vocab_size=facts.vocab_size + 1, row_tokens=max(2, int(2 * mean)))
