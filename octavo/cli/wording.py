"""How figures, times and names read to a person. Knows nothing of any console."""

import re
import time

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("", "k", "M", "G", "T")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def size(size_bytes: float) -> str:
    """`1.5 MiB`."""
    power = 0
    while abs(size_bytes) >= 1024 and power < len(_BINARY) - 1:
        size_bytes, power = size_bytes / 1024, power + 1
    return f"{size_bytes:.1f} {_BINARY[power]}" if power else f"{size_bytes:.0f} B"


def count(number: float) -> str:
    """`1.23M`: three digits."""
    power = 0
    while abs(number) >= 999.5 and power < len(_DECIMAL) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g}{_DECIMAL[power]}" if power else f"{number:.0f}"


def seconds(duration: Duration) -> float:
    """A Duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def lasting(duration_s: float) -> str:
    """`850 ms`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if duration_s < 1:
        return f"{duration_s * 1000:.0f} ms"
    if duration_s < 9.95:
        return f"{duration_s:.1f} s"
    whole = round(duration_s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ago(timestamp: Timestamp) -> str:
    """`3 min ago`; empty for a time that is not set."""
    if not timestamp.seconds:
        return ""
    elapsed_s = time.time() - timestamp.seconds
    if elapsed_s < 60:
        return "just now" if elapsed_s < 5 else f"{elapsed_s:.0f} s ago"
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if elapsed_s >= unit_s:
            return f"{elapsed_s / unit_s:.0f} {unit} ago"
    return ""


def enum_word(value_name: str, prefix: str) -> str:
    """`JOB_STATE_RUNNING` with the prefix `JOB_STATE_` is `running`."""
    return value_name.removeprefix(prefix).lower().replace("_", " ")


def printable(text: str) -> str:
    """A text without the characters that command a terminal; line breaks and tabs stay."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str, characters: int) -> str:
    """The beginning of a text on one line, line breaks shown as such."""
    flat = printable(text).replace("\n", "⏎").replace("\t", " ")
    return flat if len(flat) <= characters else f"{flat[: characters - 1]}…"


def bare(name: str) -> str:
    """The last part of a name: `models/poet` -> `poet`."""
    return name.rpartition("/")[2]


def compact(name: str) -> str:
    """The short form of a full name: `models/poet/versions/3` -> `poet/3`."""
    return re.sub(r"^\w+/", "", name).replace("/versions/", "/")


def short_digest(digest: str) -> str:
    """`sha256:4f5a…`, to be told apart by eye: of 64 digits the first twelve."""
    kind, _, digits = digest.rpartition(":")
    return f"{kind}:{digits[:12]}…" if len(digits) > 12 else digest
