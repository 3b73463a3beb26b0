"""Writes the reference pages from the code: `python docs/reference/generate.py [DIRECTORY]`.

settings.md comes from the settings classes, errors.md from the contract's reasons, checks.md from the table of what
plans are checked for; a test holds all up to date.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = ("registry", "trainer", "inference", "inspector", "gateway")


def main(target: Path) -> None:
    """Writes the pages into `target`."""
    (target / "settings.md").write_text(settings_page())
    (target / "errors.md").write_text(errors_page())
    (target / "checks.md").write_text(checks_page())


def settings_page() -> str:
    """Every setting of every program: its variable, type, default and meaning."""
    from octavo.serving import ProgramSettings

    lines = [
        "# Settings",
        "",
        "Environment variables. `OCTAVO_<FIELD>` is for all programs, `OCTAVO_<PROGRAM>_<FIELD>` for one and wins.",
        "",
        "## Every program",
        "",
        *table(ProgramSettings, "OCTAVO_", lambda name: name != "port"),
        f"| `OCTAVO_METRICS_PORT` | `int` | {metrics_ports()} | The process's `/metrics` port; 0 opens none. |",
    ]
    shared = {field.name for field in dataclasses.fields(ProgramSettings)} - {"port"}
    for program in PROGRAMS:
        room = importlib.import_module(program if program == "gateway" else f"services.{program}")
        rows = table(room.Settings, f"OCTAVO_{program.upper()}_", lambda name: name not in shared)
        lines += ["", f"## {program}", "", *rows]
    return "\n".join(lines) + "\n"


def metrics_ports() -> str:
    """The default `/metrics` port of each program."""
    from octavo.addresses import METRICS_PORTS

    return ", ".join(f"{program} {port}" for program, port in METRICS_PORTS.items())


def table(kind: type, prefix: str, is_wanted: object) -> Iterator[str]:
    """Rows for the fields of one settings class; the meaning is the string that stands below the field."""
    meanings = field_meanings(kind)
    yield "| variable | type | default | meaning |"
    yield "|---|---|---|---|"
    for field in dataclasses.fields(kind):
        if is_wanted(field.name):  # type: ignore[operator]
            kind_name = getattr(field.type, "__name__", str(field.type)).replace("pathlib.", "")
            meaning = " ".join(meanings[field.name].split())
            variable = f"`{prefix}{field.name.upper()}`"
            yield f"| {variable} | `{kind_name.replace('|', 'or')}` | {default_text(field)} | {meaning} |"


def default_text(field: "dataclasses.Field[object]") -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default}`".replace(f"{ROOT}/", "") if field.default not in ("", None) else ""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`".replace(str(Path.home()), "~")
    return ""


def field_meanings(kind: type) -> dict[str, str]:
    """The docstrings of a dataclass's fields, its bases' among them."""
    meanings: dict[str, str] = {"port": "The port to listen on; 0 takes a free one."}
    for part in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0].body  # type: ignore[attr-defined]
        for statement, following in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                meanings[statement.target.id] = ast.literal_eval(following.value)  # type: ignore[union-attr]
    return meanings


def errors_page() -> str:
    """Every reason with its meaning, as the contract's comments tell it."""
    contract = ROOT / "octavo" / "v1" / "contract.binpb"
    files = descriptor_pb2.FileDescriptorSet.FromString(contract.read_bytes()).file
    (file,) = [file for file in files if file.name == "octavo/v1/errors.proto"]
    comments = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}
    lines = [
        "# Error reasons",
        "",
        "Each error carries a `google.rpc.ErrorInfo` with one of these reasons, in the domain `octavo`.",
        "",
        "| reason | meaning |",
        "|---|---|",
    ]
    for index, value in enumerate(file.enum_type[0].value):
        if value.number:
            meaning = " ".join(comments.get((5, 0, 2, index), "").split())
            lines.append(f"| `{value.name.removeprefix('REASON_')}` | {meaning} |")
    return "\n".join(lines) + "\n"


def checks_page() -> str:
    """Every check of a plan, by noun."""
    from services.trainer.checks import table as checks

    lines = [
        "# What plans are checked for",
        "",
        "`PlanJob` and `CreateJob` check a train spec before anything runs. An error refuses it, all errors together;",
        "a warning is part of the plan. Each says the field, what is wrong with its value, and what would be right.",
    ]
    for noun in checks.NOUNS:
        heading = noun.__name__.rpartition(".")[2].replace("_", " ")
        lines += ["", f"## {heading.capitalize()}", "", (noun.__doc__ or "").strip(), ""]
        lines += ["| check | field | what is right |  |", "|---|---|---|---|"]
        for table_name in ("ASKED", "SHAPED", "PLANNED"):
            for check in getattr(noun, table_name, ()):
                kind = "error" if check.is_error else "warning"
                lines.append(f"| `{check.name}` | `{check.field}` | {check.meaning} | {kind} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE)
