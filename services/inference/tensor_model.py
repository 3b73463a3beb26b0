"""One version of tensors in memory: its graph, its batcher, and what it asks of a request.

Any ONNX graph that is not a language model's. Nobody has exported conformance vectors for it: that it answers proves
that it loads and runs here, not that it computes what its maker meant.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Self

import numpy as np

from octavo.errors import DeadlineExceeded, InvalidArgument, OctavoError
from octavo.v1.errors_pb2 import Reason
from services.inference import batch_policy
from services.inference.batch_policy import BatchPolicy
from services.inference.batch_queue import TensorRequest
from services.inference.datatypes import BY_DTYPE
from services.inference.tensor_batcher import LATE, TensorBatcher
from services.inference.tensor_meter import TensorMeter
from services.inference.tensor_probe import mixes_rows
from services.inference.tensor_session import TensorSession, TensorSpec, refused
from services.inference.tensors import Array


@dataclass(frozen=True, kw_only=True)
class TensorModel:
    """What a version of tensors became. `policy.rows` is its largest batch; 0: its tensors have no batch dimension."""

    directory: Path
    session: TensorSession
    policy: BatchPolicy
    batcher: TensorBatcher
    meter: TensorMeter

    @classmethod
    def open(
        cls,
        graph: Path,
        usual: BatchPolicy,
        *,
        threads: int,
        spin_us: int,
        size_limit_bytes: int,
        loop: asyncio.AbstractEventLoop,
        name: str,
        logger: logging.Logger,
    ) -> Self:
        """The graph at work, its thread running. Raises FailedPrecondition or InvalidArgument where it cannot be."""
        directory = graph.parent
        size_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        if size_bytes > size_limit_bytes:
            raise refused(
                f"its files have {size_bytes} bytes, more than the limit of {size_limit_bytes}; "
                "raise OCTAVO_INFERENCE_TENSOR_MODEL_LIMIT_BYTES"
            )
        session = TensorSession(graph, threads=threads, spin_us=spin_us)
        policy = _policy(session, directory, usual)
        meter = TensorMeter()
        batcher = TensorBatcher(session=session, policy=policy, meter=meter, loop=loop, name=name, logger=logger)
        batcher.start()
        return cls(directory=directory, session=session, policy=policy, batcher=batcher, meter=meter)

    @property
    def is_alive(self) -> bool:
        """Whether it can answer."""
        return self.batcher.is_alive

    def stop(self) -> None:
        """Ends what still runs, and frees its thread."""
        self.batcher.stop()

    def request(
        self, arrays: Mapping[str, Array], wanted: Sequence[str], *, priority: int = 0, deadline_s: float = inf
    ) -> TensorRequest:
        """A request for the batcher, its tensors held against the graph's; no `wanted` means all outputs.

        Raises InvalidArgument with every tensor that is wrong. May be called from any thread.
        """
        wrong = self._wrong_names(arrays, wanted)
        sizes: dict[str, int] = {}
        for spec in self.session.inputs:
            if spec.name in arrays and (why := self._mismatch(spec, arrays[spec.name], sizes)):
                wrong[f"inputs[{spec.name!r}]"] = why
        if wrong:
            raise InvalidArgument.fields(wrong)
        is_batched = self.policy.rows > 0
        return TensorRequest(
            arrays={name: _text(array, name) if array.dtype == np.object_ else array for name, array in arrays.items()},
            wanted=tuple(wanted) or tuple(spec.name for spec in self.session.outputs),
            rows=next(iter(arrays.values())).shape[0] if is_batched else 1,
            is_batched=is_batched,
            arrival_s=perf_counter(),
            priority=priority,
            deadline_s=deadline_s,
        )

    async def answer(self, request: TensorRequest) -> list[Array]:
        """The outputs that a request wants. Raises what became of it instead; leaving takes it out of the queue."""
        future: asyncio.Future[list[Array]] = asyncio.get_running_loop().create_future()
        request.future = future
        try:
            self.batcher.submit(request)
            async with asyncio.timeout(None if request.deadline_s == inf else request.deadline_s - perf_counter()):
                outputs = await future
        except TimeoutError:
            self._count("deadline_exceeded", request)
            raise DeadlineExceeded(Reason.REASON_DEADLINE_EXCEEDED, LATE) from None
        except OctavoError as error:
            self._count(error.reason_name.lower(), request)
            raise
        except asyncio.CancelledError:
            self._count("cancelled", request)
            raise
        finally:
            self.batcher.cancel(request)
        if request.spent:
            self.meter.count_success(request.rows, perf_counter() - request.arrival_s, request.spent)
        return outputs

    def _count(self, outcome: str, request: TensorRequest) -> None:
        self.meter.count_failure(outcome, perf_counter() - request.arrival_s)

    def _wrong_names(self, arrays: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, str]:
        takes = {spec.name for spec in self.session.inputs}
        gives = {spec.name for spec in self.session.outputs}
        wrong = {f"inputs[{name!r}]": "is missing" for name in sorted(takes - arrays.keys())}
        for name in arrays.keys() - takes:
            wrong[f"inputs[{name!r}]"] = f"is not an input; there are {', '.join(sorted(takes))}"
        for name in set(wanted) - gives:
            wrong[f"outputs[{name!r}]"] = f"is not an output; there are {', '.join(sorted(gives))}"
        if len(set(wanted)) < len(wanted):
            wrong["outputs"] = "names one twice"
        return wrong

    def _mismatch(self, spec: TensorSpec, array: Array, sizes: dict[str, int]) -> str:
        """What is wrong with an input; empty if nothing is. Named sizes are the same wherever they stand: `sizes`."""
        sent = BY_DTYPE[array.dtype]
        if sent != spec.datatype:
            return f"is {sent.name}; it takes {spec.datatype.name}"
        if not _fits(array.shape, spec.dimensions):
            return f"has shape {list(array.shape)}; it takes {spec.shape}"
        named = [(name, size) for name, size in zip(spec.dimensions, array.shape, strict=True) if isinstance(name, str)]
        if self.policy.rows:
            named[0] = ("batch", array.shape[0])
            if not 1 <= array.shape[0] <= self.policy.rows:
                return f"has {array.shape[0]} rows; send 1 to {self.policy.rows}"
        for name, size in named:
            if name and sizes.setdefault(name, size) != size:
                return f"has {size} where another size {name!r} is {sizes[name]}"
        return ""


def _fits(shape: tuple[int, ...], dimensions: tuple[int | str, ...]) -> bool:
    """Whether a shape has the rank and the fixed sizes that are asked for."""
    return len(shape) == len(dimensions) and all(
        isinstance(expected, str) or size == expected for size, expected in zip(shape, dimensions, strict=True)
    )


def _policy(session: TensorSession, directory: Path, usual: BatchPolicy) -> BatchPolicy:
    """How requests may share runs: never where a row's answer could depend on other rows.

    Raises FailedPrecondition where the version asks for batches that its graph cannot have.
    """
    policy, is_asked = batch_policy.read(directory, usual)
    first = [spec.dimensions[0] if spec.dimensions else 1 for spec in (*session.inputs, *session.outputs)]
    is_open = bool(session.inputs) and not any(isinstance(size, int) for size in first)
    is_shared = is_open and len(set(first)) == 1 and first[0] != ""
    if not policy.rows or not (is_asked or is_shared):
        return policy.alone()
    if not is_open:
        raise refused(f"{batch_policy.SERVING_FILE} asks for batches, but a tensor's first dimension is fixed")
    is_mixed = mixes_rows(session)
    if is_mixed and is_asked:
        raise refused(f"{batch_policy.SERVING_FILE} asks for batches, but a row's outputs depend on the other rows")
    return policy if is_mixed is False or is_asked else policy.alone()


def _text(array: Array, name: str) -> Array:
    """BYTES as the runtime takes them. Raises InvalidArgument for what is not UTF-8."""
    text = np.empty(array.size, np.object_)
    for index, element in enumerate(array.flat):
        try:
            text[index] = element.decode()
        except UnicodeDecodeError as error:
            field = f"inputs[{name!r}]"
            raise InvalidArgument.field(field, f"element {index} is not UTF-8 at byte {error.start}") from None
    return text.reshape(array.shape)
