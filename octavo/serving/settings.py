"""Settings from the environment: the one place that reads it. `OCTAVO_<PROGRAM>_<FIELD>`, else `OCTAVO_<FIELD>`.

A value that does not parse is an error that names the variable, the value and what would be right; a variable that
begins like one of ours but is none is reported with its nearest neighbours.
"""

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from octavo.addresses import local

LOOPBACK = ("127.0.0.1", "::1", "localhost")
Settings = TypeVar("Settings")


class SettingsError(ValueError):
    """The environment says something that cannot be: the message tells what would be right."""


@dataclass(frozen=True, kw_only=True)
class ProgramSettings:
    """What every program can be told. Each program adds its own fields and its default port."""

    host: str = "127.0.0.1"
    """The address to listen on. Anything but loopback needs `api_keys`, or `allow_insecure`."""
    port: int
    """The port to listen on; 0 takes a free one."""
    data_dir: Path = field(default_factory=lambda: Path.home() / ".octavo")
    """Where everything is kept; each program has a folder of its own below it."""
    registry: str = local("registry")
    """Where the registry is."""
    api_keys: Path | None = None
    """A file of `sha256:…` digests of the keys that may call, one a line. None asks nobody for a key."""
    api_key: str = field(default="", repr=False)
    """The key this program sends when it calls others."""
    allow_insecure: bool = False
    """Listen beyond loopback without keys: only behind something that checks callers itself."""
    drain_s: float = 10.0
    """How long calls under way may take to finish after SIGTERM, in seconds."""
    max_message_bytes: int = 16 << 20
    """The largest message to receive, in bytes."""
    log_format: str = "text"
    """`text` for people, `json` for machines."""
    otlp_endpoint: str = ""
    """Where traces go (`http://127.0.0.1:4317`); empty sends none."""
    trace_ratio: float = 0.1
    """The share of new traces that is recorded, 0 to 1; a caller's own decision comes first."""

    def __post_init__(self) -> None:
        """Refuses what cannot work. Raises SettingsError."""
        if self.host not in LOOPBACK and not (self.api_keys or self.allow_insecure):
            raise SettingsError(
                f"{self.host} is reachable from other machines: set OCTAVO_API_KEYS to a file of key digests, "
                "or OCTAVO_ALLOW_INSECURE=true behind something that checks callers"
            )
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port {self.port} is not a port: 0 to 65535")
        if self.log_format not in {"text", "json"}:
            raise SettingsError(f"log_format {self.log_format!r} is neither 'text' nor 'json'")


def load(
    kind: type[Settings], program: str, environment: Mapping[str, str] | None = None, **overrides: Any
) -> Settings:
    """Settings of `kind` for `program` from the environment; `overrides` win. Raises SettingsError."""
    environment = os.environ if environment is None else environment
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):  # type: ignore[arg-type]
        for variable in (f"OCTAVO_{program}_{entry.name}".upper(), f"OCTAVO_{entry.name}".upper()):
            if variable in environment and entry.name not in values:
                values[entry.name] = _parsed(variable, environment[variable], hints[entry.name])
    _refuse_unknown(kind, program, environment)
    return kind(**(values | overrides))


def load_shared(name: str, default: str, environment: Mapping[str, str] | None = None) -> str:
    """One variable that belongs to no program, such as OCTAVO_DATA_DIR."""
    return (os.environ if environment is None else environment).get(f"OCTAVO_{name}".upper(), default)


def load_port(name: str, default: int, environment: Mapping[str, str] | None = None) -> int:
    """A port that belongs to no program, such as OCTAVO_METRICS_PORT. Raises SettingsError."""
    text = load_shared(name, str(default), environment)
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise SettingsError(f"OCTAVO_{name.upper()}={text!r} is not a port: 0 to 65535")
    return int(text)


def child_environment(changes: Mapping[str, str], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program that this one starts: its own, with changes."""
    return {**(os.environ if environment is None else environment), **changes}


def _refuse_unknown(kind: type[Any], program: str, environment: Mapping[str, str]) -> None:
    """A misspelt setting is worse than a missing one: nobody notices it."""
    prefix = f"OCTAVO_{program}_".upper()
    known = [f"{prefix}{entry.name.upper()}" for entry in dataclasses.fields(kind)]
    for variable in environment:
        if variable.startswith(prefix) and variable not in known:
            near = difflib.get_close_matches(variable, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            raise SettingsError(f"{variable} is not a setting of {program}; {hint}")


def _parsed(variable: str, text: str, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
        if not text:
            return None
    parse, expected = _PARSERS[hint]
    try:
        return parse(text)
    except (ValueError, KeyError):
        raise SettingsError(f"{variable}={text!r} is not {expected}") from None


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

_PARSERS: Mapping[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "text"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (lambda text: _BOOLEANS[text.lower()], "true or false"),
    Path: (lambda text: Path(text).expanduser(), "a path"),
}
