"""`python -m services [NAME …]`: a process is a list of services; without names, all four.

Kubernetes runs four lists of length one, a laptop one list of length four; there is no other way to start them.
"""

import asyncio
import importlib
import sys
from typing import Protocol, cast

import uvloop

from octavo.addresses import METRICS_PORTS
from octavo.serving import (
    ProcessMetrics,
    ProgramSettings,
    Service,
    SettingsError,
    Telemetry,
    configure_logging,
    load,
    serve,
)
from octavo.serving.settings import load_port, load_shared

# The order in which they start, and against which they stop: who is needed by others comes first.
NAMES = ("registry", "inference", "inspector", "trainer")


class Room(Protocol):
    """What each package below this one offers."""

    Settings: type[ProgramSettings]

    def assemble(self, settings: ProgramSettings, telemetry: Telemetry) -> Service:
        """Builds the service; nothing runs yet."""
        ...


def assemble(name: str, process: ProcessMetrics) -> Service:
    """One service with its settings from the environment. Raises SettingsError."""
    room = cast(Room, importlib.import_module(f"services.{name}"))
    settings = load(room.Settings, name)
    return room.assemble(settings, Telemetry.from_settings(name, process, settings))


def main(names: list[str]) -> None:
    """Runs the named services until SIGTERM."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise SystemExit(f"there is no service {', '.join(unknown)}; there are {', '.join(NAMES)}")
    chosen = [name for name in NAMES if not names or name in names]
    try:
        configure_logging(load_shared("log_format", "text"))
        metrics_port = load_port("metrics_port", METRICS_PORTS[chosen[0]])
        process = ProcessMetrics()
        uvloop.run(serve([assemble(name, process) for name in chosen], process, metrics_port))
    except SettingsError as error:
        raise SystemExit(f"octavo: {error}") from None
    except asyncio.CancelledError:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main(sys.argv[1:])
