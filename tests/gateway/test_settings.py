"""What the gateway can be told."""

import pytest

from gateway.settings import GatewaySettings
from octavo.addresses import PORTS, Addresses
from octavo.serving import SettingsError, load


def test_without_an_environment_everything_is_on_this_machine() -> None:
    settings = load(GatewaySettings, "gateway", {})
    assert (settings.host, settings.port) == ("127.0.0.1", PORTS["gateway"])
    assert settings.addresses == Addresses()
    assert settings.contract.is_file()


def test_addresses_come_from_the_environment() -> None:
    environment = {"OCTAVO_TRAINER": "trainer:1", "OCTAVO_GATEWAY_REGISTRY": "registry:2"}
    addresses = load(GatewaySettings, "gateway", environment).addresses
    assert (addresses.trainer, addresses.registry) == ("trainer:1", "registry:2")


def test_other_machines_are_let_in_only_with_keys_or_by_name() -> None:
    with pytest.raises(SettingsError, match="OCTAVO_API_KEYS"):
        load(GatewaySettings, "gateway", {"OCTAVO_GATEWAY_HOST": "0.0.0.0"})
    assert load(GatewaySettings, "gateway", {"OCTAVO_GATEWAY_HOST": "0.0.0.0", "OCTAVO_ALLOW_INSECURE": "true"})


def test_a_key_of_its_own_is_lent_to_nobody_unless_that_is_said() -> None:
    with pytest.raises(SettingsError, match="lend its key"):
        load(GatewaySettings, "gateway", {"OCTAVO_API_KEY": "secret"})
    assert load(GatewaySettings, "gateway", {"OCTAVO_API_KEY": "secret", "OCTAVO_API_KEYS": "/keys"})
    assert load(GatewaySettings, "gateway", {"OCTAVO_API_KEY": "secret", "OCTAVO_ALLOW_INSECURE": "true"})


@pytest.mark.parametrize("field", ["TIMEOUT_S", "MAX_TIMEOUT_S", "IDLE_S", "HEARTBEAT_S", "MAX_BODY_BYTES", "WORKERS"])
def test_a_limit_of_nothing_is_refused(field) -> None:
    with pytest.raises(SettingsError, match=field.lower()):
        load(GatewaySettings, "gateway", {f"OCTAVO_GATEWAY_{field}": "0"})
