"""`octavo up`: starts every program, waits until all are ready, stays, and stops all when it is stopped."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from octavo.cli import options, ports, screen, whereabouts, wording
from octavo.cli.child import Child, exit_words
from octavo.cli.failure import Refusal
from octavo.cli.fleet import Fleet
from octavo.cli.health import Health
from octavo.cli.job_story import state_word
from octavo.cli.options import AsJson
from octavo.errors import OctavoError
from octavo.v1 import trainer_pb2

READY_WITHIN_S = 120.0
_POLL_S = 0.2
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STYLES = {"ready": "bold green", "not ready": "yellow", "away": "dim"}


def up(
    context: typer.Context,
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="Where everything is kept; ~/.octavo unless said.", file_okay=False, metavar="DIR"),
    ] = None,
    port_offset: Annotated[int, typer.Option(help="Added to every port, for a second suite beside the first.")] = 0,
    any_ports: Annotated[bool, typer.Option("--any-ports", help="Take ports that are free.")] = False,
    separate: Annotated[bool, typer.Option("--separate", help="One process a service, as on a cluster.")] = False,
    as_json: AsJson = False,
) -> None:
    """Starts the registry, trainer, inference, inspector and gateway, and stays until Ctrl-C.

    Logs go to DIR/logs. Nothing is restarted silently: when a program ends, this says why and stops the others.

    Examples: `octavo up`, `octavo up --data ./play --port-offset 100`
    """
    data_dir = data or options.suite(context).data_dir
    chosen = ports.free() if any_ports else ports.usual(port_offset)
    with stop_signals() as stopped, Fleet(data_dir, chosen, is_separate=separate) as fleet:
        wait_until_ready(fleet, stopped, is_quiet=as_json)
        if not stopped.is_set():
            _announce(fleet, as_json=as_json)
        while not stopped.wait(_POLL_S):
            if fallen := fleet.fallen():
                raise fell(fallen)
        _take_leave(fleet)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and the end of the terminal set; a second one interrupts at once."""
    stopped = threading.Event()

    def stop(number: int, _frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in _STOPS}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_until_ready(fleet: Fleet, stopped: threading.Event, *, is_quiet: bool = False) -> None:
    """Shows the programs until all are ready, or until `stopped`. Raises Refusal when one ends or takes too long."""
    deadline_s = time.monotonic() + READY_WITHIN_S
    view = _Programs(fleet)
    with Live(view, console=screen.stderr(), refresh_per_second=8, transient=True) if not is_quiet else _nothing():
        while not stopped.wait(_POLL_S):
            view.healths = fleet.health()
            if fallen := fleet.fallen():
                raise fell(fallen)
            if all(health.is_ready for health in view.healths.values()):
                return
            if time.monotonic() > deadline_s:
                raise _late(fleet, view.healths)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class _Programs:
    """The programs with their addresses and states, as a table that changes."""

    def __init__(self, fleet: Fleet) -> None:
        self.healths: dict[str, Health] = {}
        self._fleet = fleet
        self._since_s = time.monotonic()

    def __rich__(self) -> Table:
        waited = wording.lasting(time.monotonic() - self._since_s)
        table = program_table(self._fleet.addresses, self.healths)
        table.add_row(Text(f"starting, {waited}", style="dim"))
        return table


def program_table(addresses: dict[str, str], healths: dict[str, Health]) -> Table:
    """One row a program: name, address, state."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in ("program", "address", "state", ""):
        table.add_column(column)
    for name, address in addresses.items():
        health = healths.get(name, Health("away"))
        shown = f"http://{address}" if name == "gateway" else address
        style = _STYLES[health.state]
        table.add_row(
            Text(name, style="bold"), shown, Text(health.state, style=style), Text(health.detail, style="dim")
        )
    return table


def _announce(fleet: Fleet, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"dataDir": str(fleet.data_dir), "programs": fleet.addresses}), flush=True)
        return
    console = screen.stdout()
    console.print(program_table(fleet.addresses, fleet.health()))
    gateway = f"http://{fleet.addresses['gateway']}"
    octavo = "octavo" if fleet.data_dir == whereabouts.default_data_dir() else f"octavo --data {fleet.data_dir}"
    lines = [
        ("data", str(fleet.data_dir)),
        ("logs", str(fleet.data_dir / "logs")),
        ("every call", f"{gateway}/docs"),
        ("go on", f"{octavo} datasets create tiny my-text.txt"),
        ("", f"{octavo} train tiny --model poet --time-budget 60s --deploy"),
        ("", f'{octavo} generate poet "Once upon a time"'),
        ("stop", "Ctrl-C"),
    ]
    console.print()
    for name, words in lines:
        console.print(Text.assemble((f"{name:<12}", "dim"), words), soft_wrap=True)


def fell(fallen: Child) -> Refusal:
    """What to say of a program that has ended: how, and its last lines."""
    code = fallen.exit_code
    hosted = f" ({', '.join(fallen.programs)})" if fallen.programs != (fallen.name,) else ""
    return Refusal(
        f"{fallen.name}{hosted} has ended: {exit_words(code if code is not None else 0)}; the others are stopped\n"
        f"its last lines, of {fallen.log}:\n\n{fallen.last_lines()}\n"
    )


def _late(fleet: Fleet, healths: dict[str, Health]) -> Refusal:
    waiting = [name for name, health in healths.items() if not health.is_ready]
    lines = "\n".join(process.last_lines(6) for process in fleet.children)
    return Refusal(f"not ready after {READY_WITHIN_S:.0f} s: {', '.join(waiting)}\n\n{lines}\n")


def _take_leave(fleet: Fleet) -> None:
    console = screen.stderr()
    for job in _living_jobs(fleet):
        console.print(
            f"{job.name} is {state_word(job.state)}: it goes on by itself, and the next `octavo up` finds it again"
        )
    console.print("stopping …")
    for name in fleet.stop():
        console.print(f"{name} did not stop in time and was killed", style="yellow")
    console.print("stopped; everything is kept")


def _living_jobs(fleet: Fleet) -> list[trainer_pb2.Job]:
    """Running jobs, as far as the trainer still says: leaving must not fail for want of this."""
    request = trainer_pb2.ListJobsRequest(filter="state = RUNNING")
    try:
        with options.Suite(fleet.data_dir).connect() as client:
            return list(client.trainer.ListJobs(request, timeout=1.0).jobs)
    except OctavoError:
        return []
