"""What went wrong, as one block that a person can act upon: what, which field, what would be right, the reason."""

import json
import re
import traceback
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import json_format
from rich.console import Group
from rich.table import Table
from rich.text import Text

from octavo.cli import screen
from octavo.errors import InvalidArgument, OctavoError, Unavailable
from octavo.v1 import errors_pb2

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_LISTS: Mapping[int, str] = {
    errors_pb2.REASON_MODEL_NOT_FOUND: "models list",
    errors_pb2.REASON_VERSION_NOT_FOUND: "models versions MODEL",
    errors_pb2.REASON_ALIAS_NOT_FOUND: "models list",
    errors_pb2.REASON_DATASET_NOT_FOUND: "datasets list",
    errors_pb2.REASON_DEPLOYMENT_NOT_FOUND: "deployments list",
    errors_pb2.REASON_SERVED_MODEL_NOT_FOUND: "deployments list",
    errors_pb2.REASON_JOB_NOT_FOUND: "jobs list",
}

_UNREACHABLE = re.compile(r"ipv[46]:(\S+?): .*(?:refused|connect)", re.IGNORECASE)


class Refusal(Exception):
    """The command line itself says no: what is wrong, and what to do."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


def show(error: OctavoError | Refusal, *, as_json: bool) -> None:
    """Prints an error on stderr: a block for people, a google.rpc.Status for machines."""
    if as_json:
        screen.stderr().out(_as_json(error), highlight=False)
        return
    screen.stderr().print(_block(error), soft_wrap=True)


def defect(error: Exception, data_dir: Path) -> Refusal:
    """What to say of an error that nobody expected; the traceback goes into a file."""
    path = data_dir / "logs" / "command-line.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        traceback.print_exception(error, file=file)
    return Refusal(f"a defect of octavo: {type(error).__name__}: {error}", f"please report it, with the end of {path}")


def _as_json(error: OctavoError | Refusal) -> str:
    if isinstance(error, OctavoError):
        return json_format.MessageToJson(error.to_status(), indent=None)
    return json.dumps({"message": error.message, "advice": error.advice})


def _block(error: OctavoError | Refusal) -> Group:
    facts = Table.grid(padding=(0, 2))
    for label, text in _facts(error):
        facts.add_row(Text(f"  {label}", style="dim"), Text(text))
    headline = Text.assemble(("error: ", "bold red"), _headline(error))
    return Group(headline, facts) if facts.row_count else Group(headline)


def _headline(error: OctavoError | Refusal) -> str:
    if isinstance(error, Unavailable) and (address := _UNREACHABLE.search(error.message)):
        return f"nothing answers at {address[1]}"
    if isinstance(error, InvalidArgument) and error.violations:
        return "one field is wrong" if len(error.violations) == 1 else f"{len(error.violations)} fields are wrong"
    return error.message


def _facts(error: OctavoError | Refusal) -> list[tuple[str, str]]:
    if isinstance(error, Refusal):
        return [("do", error.advice)] if error.advice else []
    # A violation that only repeats the message would say it twice.
    told = "" if isinstance(error, InvalidArgument) else error.message
    facts = [(field, description) for field, description in error.violations.items() if description != told]
    if error.reason == errors_pb2.REASON_UPSTREAM_UNAVAILABLE:
        facts.append(("do", "is the suite running? `octavo status` says so, `octavo up` starts it"))
    if error.retry_after_s is not None:
        facts.append(("do", f"try again in {error.retry_after_s:g} s"))
    if error.reason in _LISTS:
        facts.append(("do", f"`octavo {_LISTS[error.reason]}` shows what there is"))
    metadata = "".join(f"  {key}={value}" for key, value in sorted(error.metadata.items()))
    facts.append(("reason", error.reason_name + metadata))
    return facts
