"""The compose file starts the five programs at the code's ports, with settings that exist, and asks for keys."""

import dataclasses
import importlib
from pathlib import Path

import pytest
import yaml

from octavo.addresses import PORTS

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "compose.yaml").read_text())


def test_the_five_programs_are_there_and_only_the_gateway_is_reachable_from_loopback():
    services = COMPOSE["services"]
    assert set(services) == set(PORTS)
    published = {name: service.get("ports", []) for name, service in services.items() if service.get("ports")}
    assert published == {"gateway": [f"127.0.0.1:{PORTS['gateway']}:{PORTS['gateway']}"]}


@pytest.mark.parametrize("program", PORTS)
def test_a_program_is_given_settings_that_exist_and_the_addresses_of_the_others(program):
    service = COMPOSE["services"][program]
    assert service["command"] == (["gateway"] if program == "gateway" else ["services", program])
    known = set()
    for name in PORTS:
        room = importlib.import_module("gateway" if name == "gateway" else f"services.{name}")
        for field in dataclasses.fields(room.Settings):
            known |= {f"OCTAVO_{field.name.upper()}", f"OCTAVO_{name.upper()}_{field.name.upper()}"}
    assert set(service["environment"]) <= known
    for name in set(PORTS) - {"gateway"}:
        assert service["environment"][f"OCTAVO_{name.upper()}"] == f"{name}:{PORTS[name]}"


def test_every_call_wants_a_key():
    for service in COMPOSE["services"].values():
        assert service["environment"]["OCTAVO_API_KEYS"] == "/run/secrets/keys"
        assert service["secrets"] == ["keys"]
        assert service["read_only"]
