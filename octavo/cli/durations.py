"""Times as people write them: `90s`, `2min`, `1.5h`."""

import re

import typer
from google.protobuf.duration_pb2 import Duration

_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|min|m|h|d)?$")
_UNITS_S = {"ms": 1e-3, "s": 1.0, None: 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str) -> Duration:
    """`90s`, `2min`, `1.5h` as a Duration. Raises typer.BadParameter."""
    match = _DURATION.match(text.strip())
    if not match:
        raise typer.BadParameter(f"{text!r} is no duration; write 60s, 5min or 1.5h")
    parsed = Duration()
    parsed.FromNanoseconds(round(float(match[1]) * _UNITS_S[match[2]] * 1e9))
    return parsed
