"""How requests for one tensor model are put together: what its version says in serving.json, or the server's settings.

Knows numbers and their limits; nothing of graphs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.errors import InvalidArgument
from octavo.formats.bundle import read_json
from octavo.v1.errors_pb2 import Reason

SERVING_FILE = "serving.json"
"""A version's own wishes, such as `{"max_batch_size": 16, "max_queue_delay_microseconds": 500}`."""

_RANGES: Mapping[str, tuple[int, int]] = {
    "max_batch_size": (0, 1 << 16),
    "max_queue_delay_microseconds": (0, 10_000_000),
    "max_queue_size": (1, 1_000_000),
}
_SIZES = "preferred_batch_sizes"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """`rows` is the most rows of one run; 0 runs each request by itself, for graphs without a batch dimension.

    A request waits `delay_us` at most for company, less where a batch of a preferred size can be made before.
    `waiting_limit` requests may wait; more are refused.
    """

    rows: int
    delay_us: int = 0
    preferred: tuple[int, ...] = ()
    waiting_limit: int = 256

    @property
    def delay_s(self) -> float:
        return self.delay_us / 1e6

    def alone(self) -> "BatchPolicy":
        """The same without batches."""
        return replace(self, rows=0, delay_us=0, preferred=())


def read(directory: Path, usual: BatchPolicy) -> tuple[BatchPolicy, bool]:
    """The policy of the version in `directory`, and whether it asks for a batch size itself.

    Raises InvalidArgument for wishes that cannot be.
    """
    path = directory / SERVING_FILE
    if not path.is_file():
        return usual, False
    wishes = read_json(path)
    wrong = {name: "is not one of its fields; there are " + ", ".join((*_RANGES, _SIZES)) for name in _strays(wishes)}
    wrong |= {name: _outside(wishes[name], name) for name in _RANGES if name in wishes and _outside(wishes[name], name)}
    rows = wishes.get("max_batch_size", usual.rows)
    if not wrong:
        wrong |= _wrong_sizes(wishes.get(_SIZES, []), rows)
    if wrong:
        fields = {f"{SERVING_FILE}: {name}": why for name, why in wrong.items()}
        raise InvalidArgument.fields(fields, reason=Reason.REASON_INVALID_BUNDLE)
    policy = BatchPolicy(
        rows=rows,
        delay_us=wishes.get("max_queue_delay_microseconds", usual.delay_us),
        preferred=tuple(sorted(wishes.get(_SIZES, ()))),
        waiting_limit=wishes.get("max_queue_size", usual.waiting_limit),
    )
    return policy, "max_batch_size" in wishes


def _strays(wishes: Mapping[str, Any]) -> list[str]:
    return sorted(wishes.keys() - {*_RANGES, _SIZES})


def _outside(value: Any, name: str) -> str:
    least, most = _RANGES[name]
    if type(value) is int and least <= value <= most:
        return ""
    return f"{value!r} is not a whole number from {least} to {most}"


def _wrong_sizes(sizes: Any, rows: int) -> dict[str, str]:
    if isinstance(sizes, list) and all(type(size) is int and 1 <= size <= rows for size in sizes):
        return {}
    return {_SIZES: f"{sizes!r} is not a list of whole numbers from 1 to max_batch_size, which is {rows}"}
