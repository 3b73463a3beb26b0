"""Writes cli.md from the command line itself: `python docs/reference/generate_cli.py [DIRECTORY]`.

A test holds the page up to date.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

INTRODUCTION = """# The command line

`octavo --data DIR COMMAND …` speaks to the suite of a data directory; without `--data`, to that of `OCTAVO_DATA_DIR`
or `~/.octavo`. Names have short forms: `poet` is `models/poet`, `poet@champion` follows an alias, `poet/3` is
`models/poet/versions/3`, `tiny` is `datasets/tiny`.

`--json` prints protobuf JSON and nothing else on stdout: one object, or one a line for streams. Progress, notes and
errors go to stderr. Exit codes: 0 well, 1 an error of the call, 2 wrong usage, 130 interrupted.
"""


def main(target: Path) -> None:
    """Writes the page into `target`."""
    from typer.main import get_command

    from octavo.cli.__main__ import app

    lines = [INTRODUCTION]
    for words, command in commands(get_command(app)):
        lines += section(words, command)
    (target / "cli.md").write_text("\n".join(lines))


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


def section(words: str, command: Any) -> Iterator[str]:
    """What one command does, takes and can be told."""
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    usage = " ".join(f"[{label(each)}]" if not each.required else label(each) for each in arguments)
    yield f"## octavo {words}"
    yield ""
    yield f"`octavo {words}{' ' if usage else ''}{usage}`"
    yield ""
    yield command.help.strip()
    yield ""
    yield "| | |"
    yield "|---|---|"
    for parameter in parameters:
        yield f"| `{label(parameter)}` | {meaning(parameter)} |"
    yield ""


def label(parameter: Any) -> str:
    """How a parameter is written."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper()).strip("[]")
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def meaning(parameter: Any) -> str:
    """What a parameter says of itself, with its default."""
    words = parameter.help.replace("|", "or")
    default = parameter.default
    is_telling = default not in (None, "", False, True) and not callable(default) and not parameter.required
    required = " Required." if parameter.required and parameter.param_type_name == "option" else ""
    return f"{words}{f' Default: `{default}`.' if is_telling else ''}{required}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE)
