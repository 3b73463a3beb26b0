"""What commands write on: consoles, tables, JSON. People read tables, machines read protobuf's own JSON."""

from collections.abc import Iterable, Sequence

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell = str | Text

_WIDE = 240


def stdout() -> Console:
    """Where results go. What no terminal shows has no edge to wrap at."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def stderr() -> Console:
    """Where progress, notes and errors go."""
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal else Console(stderr=True, highlight=False, width=_WIDE)


def print_json(message: Message) -> None:
    """One object, in the JSON mapping of protobuf."""
    print(json_format.MessageToJson(message, ensure_ascii=False), flush=True)


def print_json_line(message: Message) -> None:
    """One object of a stream, on a line of its own."""
    print(json_format.MessageToJson(message, indent=None, ensure_ascii=False), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, empty: str) -> None:
    """Rows under headings; `empty` is said when there are none. Columns headed `>name` are aligned right."""
    cells = [[_text(cell) for cell in row] for row in rows]
    if not cells:
        stdout().print(Text(empty, style="dim"))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    stdout().print(table)


def print_facts(facts: Iterable[tuple[str, Cell]]) -> None:
    """Names and values below one another; empty values are left out."""
    stdout().print(facts_grid(facts))


def facts_grid(facts: Iterable[tuple[str, Cell]]) -> Table:
    """Names and values below one another, to be printed with other things."""
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        if value:
            grid.add_row(name, _text(value))
    return grid


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)
