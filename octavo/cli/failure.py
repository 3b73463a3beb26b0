"""What went wrong, as one block that a person can act upon: what, which field, what would be right, the reason."""

import json
import re

from google.protobuf import json_format
from rich.console import Group
from rich.table import Table
from rich.text import Text

from octavo.cli import screen
from octavo.errors import OctavoError, Unavailable

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

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
    if isinstance(error, OctavoError) and error.violations:
        return "this cannot be right"
    return error.message


def _facts(error: OctavoError | Refusal) -> list[tuple[str, str]]:
    if isinstance(error, Refusal):
        return [("do", error.advice)] if error.advice else []
    facts = [(field, description) for field, description in error.violations.items()]
    if isinstance(error, Unavailable):
        facts.append(("do", "is the suite running? `octavo status` says so, `octavo up` starts it"))
    if error.retry_after_s is not None:
        facts.append(("do", f"try again in {error.retry_after_s:g} s"))
    metadata = "".join(f"  {key}={value}" for key, value in sorted(error.metadata.items()))
    facts.append(("reason", error.reason_name + metadata))
    return facts
