"""`octavo status`: which programs answer, where, and in which versions."""

import json

import typer

import octavo
from octavo.cli import health, options, screen, whereabouts
from octavo.cli.options import AsJson
from octavo.cli.up import program_table
from octavo.client import Client
from octavo.errors import OctavoError
from octavo.v1 import inspector_pb2


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Shows the health and the versions of all programs. Exit code 1 unless all are ready.

    Example: `octavo status`
    """
    suite = options.suite(context)
    addresses = whereabouts.programs(suite.data_dir)
    healths = {name: health.check(name, address) for name, address in addresses.items()}
    with suite.connect() as client:
        versions = _versions(client) if healths["inspector"].is_ready else {}
    if as_json:
        programs = {name: {"address": addresses[name], "state": found.state} for name, found in healths.items()}
        print(json.dumps({"programs": programs, "versions": versions, "client": octavo.__version__}))
    else:
        screen.stdout().print(program_table(addresses, healths))
        words = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        screen.print_facts([("versions", words), ("client", f"octavo {octavo.__version__}")])
    raise typer.Exit(0 if all(found.is_ready for found in healths.values()) else 1)


def _versions(client: Client) -> dict[str, str]:
    """What the suite computes with; nothing from an inspector that has just gone away."""
    try:
        return dict(client.inspector.DiagnoseSystem(inspector_pb2.DiagnoseSystemRequest()).versions)
    except OctavoError:
        return {}
