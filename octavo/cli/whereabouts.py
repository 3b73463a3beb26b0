"""Where the suite of a data directory listens: `octavo up` leaves a note there, every other command reads it.

Variables such as OCTAVO_REGISTRY win over the note, and the note over the default ports.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from octavo.addresses import PORTS, Addresses, local
from octavo.cli.failure import Refusal
from octavo.client import Client
from octavo.serving.settings import load_shared

NOTE = "suite.json"


@dataclass(frozen=True, kw_only=True)
class Note:
    """What `octavo up` says of itself: its process and the `host:port` of each program."""

    pid: int
    programs: Mapping[str, str]


def default_data_dir() -> Path:
    """OCTAVO_DATA_DIR, or `.octavo` in the home directory."""
    return Path(load_shared("data_dir", str(Path.home() / ".octavo"))).expanduser()


def write(data_dir: Path, note: Note) -> None:
    """Leaves the note, whole or not at all."""
    staged = data_dir / f"{NOTE}.new"
    staged.write_text(json.dumps(asdict(note), indent=2) + "\n")
    staged.replace(data_dir / NOTE)


def read(data_dir: Path) -> Note | None:
    """The note, if there is one. Raises Refusal when it is not ours."""
    path = data_dir / NOTE
    try:
        content = json.loads(path.read_text())
        return Note(pid=int(content["pid"]), programs={name: str(content["programs"][name]) for name in PORTS})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise Refusal(f"{path} cannot be read", f"remove it; `octavo up --data {data_dir}` writes it anew") from None


def programs(data_dir: Path) -> dict[str, str]:
    """`host:port` of every program, the gateway with them."""
    note = read(data_dir)
    known = note.programs if note else {name: local(name) for name in PORTS}
    return {name: load_shared(name, known[name]) for name in PORTS}


def connect(data_dir: Path) -> Client:
    """A client for the suite of a data directory; nothing is called yet."""
    found = programs(data_dir)
    found.pop("gateway")
    return Client(Addresses(**found), api_key=load_shared("api_key", ""))
