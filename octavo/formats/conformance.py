"""conformance.json: what a version answered where it was exported, replayed wherever it is to be served.

Per precision a list of vectors: token ids in, greedy token ids out, the log-probability (natural) of each, and a
digest over the exact bits of those. The ids and, within a tolerance, the log-probabilities must be the same on
every machine; the digest tells whether this machine is the same to the last bit. Vectors end before a step whose
two best tokens are closer than any tolerance, since there rounding decides. Knows nothing of runtimes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.formats.bundle import read_json, write_json
from octavo.formats.manifest import digest_bytes
from octavo.v1.errors_pb2 import Reason

CONFORMANCE_FILE: Final = "conformance.json"
FORMAT: Final = "octavo-conformance-1"
VECTOR_LIMIT: Final = 1_000
LENGTH_LIMIT: Final = 1 << 16

Complete = Callable[[Sequence[int], int], tuple[Sequence[int], Sequence[float]]]
"""Continues a prompt greedily by so many tokens: their ids and their log-probabilities."""


@dataclass(frozen=True, kw_only=True)
class Vector:
    """One prompt and its greedy continuation; `log_probabilities` are natural, float32 in value."""

    prompt: tuple[int, ...]
    greedy: tuple[int, ...]
    log_probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths_fit = len(self.greedy) == len(self.log_probabilities)
        ids = (*self.prompt, *self.greedy)
        are_ids = all(type(code) is int and code >= 0 for code in ids)
        if not (self.prompt and self.greedy and lengths_fit and are_ids and len(ids) <= LENGTH_LIMIT):
            raise _invalid("a vector needs a prompt, greedy ids, and as many log-probabilities")
        if not all(isinstance(value, float) and -math.inf < value <= 0 for value in self.log_probabilities):
            raise _invalid("log-probabilities are finite and not above 0")

    @property
    def digest(self) -> str:
        """`sha256:…` of the log-probabilities as little-endian float32."""
        return digest_bytes(np.asarray(self.log_probabilities, "<f4").tobytes())

    def difference(self, greedy: Sequence[int], log_probabilities: Sequence[float], tolerance: float) -> str | None:
        """What differs, in words; None where the vector holds."""
        for step, (wanted, found) in enumerate(zip(self.greedy, greedy, strict=False)):
            if wanted != found:
                return f"token {step} is {found} instead of {wanted}"
        if len(greedy) != len(self.greedy) or len(log_probabilities) != len(self.greedy):
            return f"{len(greedy)} tokens came instead of {len(self.greedy)}"
        gaps = [abs(a - b) for a, b in zip(self.log_probabilities, log_probabilities, strict=True)]
        step, gap = max(enumerate(gaps), key=lambda item: (math.isnan(item[1]), item[1]))
        # Written so that NaN is a difference.
        return None if gap <= tolerance else f"log-probability {step} is off by {gap:.3g} (allowed {tolerance:.3g})"


@dataclass(frozen=True, kw_only=True)
class PrecisionVectors:
    """The vectors of one graph: `tolerance` bounds each log-probability on other machines, in nats."""

    graph: str
    tolerance: float
    vectors: tuple[Vector, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How many vectors held, and how many of them to the last bit."""

    vectors: int
    bit_exact: int


@dataclass(frozen=True)
class Conformance:
    """Everything in conformance.json, by precision: `fp32`, `int8`, …"""

    precisions: Mapping[str, PrecisionVectors]

    def verify(self, precision: str, complete: Complete) -> Verdict:
        """Replay all vectors of one precision; FailedPrecondition tells which one does not hold, and how."""
        wanted = self.precisions.get(precision)
        if wanted is None:
            raise FailedPrecondition(
                Reason.REASON_CONFORMANCE_FAILED,
                f"there are no conformance vectors for {precision}; there are for {', '.join(self.precisions)}",
                precision=precision,
            )
        bit_exact = 0
        for index, vector in enumerate(wanted.vectors):
            greedy, log_probabilities = complete(vector.prompt, len(vector.greedy))
            difference = vector.difference(greedy, log_probabilities, wanted.tolerance)
            if difference:
                raise FailedPrecondition(
                    Reason.REASON_CONFORMANCE_FAILED,
                    f"vector {index} of {precision} does not hold on this machine: {difference}",
                    precision=precision,
                    vector=index,
                )
            bit_exact += digest_bytes(np.asarray(log_probabilities, "<f4").tobytes()) == vector.digest
        return Verdict(vectors=len(wanted.vectors), bit_exact=bit_exact)

    def with_precision(self, precision: str, vectors: PrecisionVectors) -> Conformance:
        """The same with one precision added or replaced."""
        return Conformance({**self.precisions, precision: vectors})

    def write(self, directory: Path) -> None:
        """Write conformance.json."""
        precisions = {name: _to_json(entry) for name, entry in self.precisions.items()}
        write_json(directory / CONFORMANCE_FILE, {"format": FORMAT, "precisions": precisions})

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read conformance.json; InvalidArgument where it is not of our format."""
        path = directory / CONFORMANCE_FILE
        if not path.is_file():
            raise _invalid("it is missing")
        value = read_json(path)
        if value.get("format") != FORMAT:
            raise _invalid(f"its format is {value.get('format')!r}; this version reads {FORMAT}")
        try:
            return cls({name: _from_json(entry) for name, entry in value["precisions"].items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _invalid(f"it is incomplete: {error}") from error


def log_probability(logits: npt.NDArray[np.float32], code: int) -> float:
    """Natural log-probability of `code` under `logits` [vocab], computed in float64 and rounded to float32."""
    wide = logits.astype(np.float64)
    peak = wide.max()
    value = wide[code] - peak - np.log(np.exp(wide - peak).sum())
    return float(np.float32(min(value, 0.0)))


def _to_json(entry: PrecisionVectors) -> dict[str, Any]:
    vectors = [asdict(vector) | {"digest": vector.digest} for vector in entry.vectors]
    return {"graph": entry.graph, "tolerance": entry.tolerance, "vectors": vectors}


def _from_json(value: Mapping[str, Any]) -> PrecisionVectors:
    graph, tolerance = value["graph"], value["tolerance"]
    if not isinstance(graph, str) or not isinstance(tolerance, float) or not 0 <= tolerance < 1:
        raise _invalid("a precision needs a graph and a tolerance from 0 to 1")
    if not 0 < len(value["vectors"]) <= VECTOR_LIMIT:
        raise _invalid(f"a precision has from 1 to {VECTOR_LIMIT} vectors")
    return PrecisionVectors(graph=graph, tolerance=tolerance, vectors=tuple(map(_vector, value["vectors"])))


def _vector(row: Mapping[str, Any]) -> Vector:
    fields = ("prompt", "greedy", "log_probabilities")
    vector = Vector(**{name: tuple(row[name]) for name in fields})
    if row["digest"] != vector.digest:
        raise _invalid("the digest of a vector is not that of its log-probabilities")
    return vector


def _invalid(text: str) -> InvalidArgument:
    return InvalidArgument.field(CONFORMANCE_FILE, text, reason=Reason.REASON_INVALID_BUNDLE)
