"""What commands have in common: the suite they speak to, and options that mean the same everywhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import whereabouts
from octavo.client import Client

AsJson = Annotated[bool, typer.Option("--json", help="Print protobuf JSON and nothing else on stdout.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Most entries to show.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True)
class Suite:
    """The suite that `octavo --data DIR …` speaks to."""

    data_dir: Path

    def connect(self) -> Client:
        """A client for it; use it as a context."""
        return whereabouts.connect(self.data_dir)


def suite(context: typer.Context) -> Suite:
    """The suite of this command line."""
    found = context.find_object(Suite)
    if found is None:
        raise RuntimeError("the command was called without `octavo` before it")
    return found


@contextmanager
def connected(context: typer.Context) -> Iterator[Client]:
    """A client for the suite of this command line, closed at the end."""
    with suite(context).connect() as client:
        yield client


def confirm(question: str, *, yes: bool) -> None:
    """Asks before something is lost. Raises typer.Abort on no."""
    if not yes:
        typer.confirm(question, abort=True, err=True)
