"""Settings come from the environment, and what cannot be is refused with the way out."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from octavo.serving.settings import ProgramSettings, SettingsError, load, load_port


@dataclass(frozen=True, kw_only=True)
class PressSettings(ProgramSettings):
    """Settings of a program that exists in this test alone."""

    port: int = 4000
    sheets: int = 8
    folio: Path | None = None


def test_a_program_s_own_variable_wins_over_the_shared_one():
    environment = {"OCTAVO_DATA_DIR": "/everyone", "OCTAVO_PRESS_DATA_DIR": "/press", "OCTAVO_LOG_FORMAT": "json"}
    settings = load(PressSettings, "press", environment)
    assert settings.data_dir == Path("/press")
    assert settings.log_format == "json"


def test_defaults_work_with_an_empty_environment():
    settings = load(PressSettings, "press", {})
    assert (settings.host, settings.port, settings.sheets, settings.folio) == ("127.0.0.1", 4000, 8, None)


def test_a_value_that_does_not_parse_names_the_variable_and_what_would_be_right():
    with pytest.raises(SettingsError, match=r"OCTAVO_PRESS_SHEETS='many' is not a whole number"):
        load(PressSettings, "press", {"OCTAVO_PRESS_SHEETS": "many"})


def test_a_misspelt_setting_is_reported_with_its_neighbour():
    with pytest.raises(SettingsError, match=r"OCTAVO_PRESS_SHEET is not a setting.*OCTAVO_PRESS_SHEETS"):
        load(PressSettings, "press", {"OCTAVO_PRESS_SHEET": "3"})


def test_listening_beyond_loopback_needs_keys_or_an_explicit_word():
    with pytest.raises(SettingsError, match="reachable from other machines"):
        load(PressSettings, "press", {"OCTAVO_HOST": "0.0.0.0"})
    assert load(PressSettings, "press", {"OCTAVO_HOST": "0.0.0.0", "OCTAVO_ALLOW_INSECURE": "true"}).allow_insecure
    assert load(PressSettings, "press", {"OCTAVO_HOST": "0.0.0.0", "OCTAVO_API_KEYS": "/keys"}).api_keys == Path(
        "/keys"
    )


@pytest.mark.parametrize(("field", "value"), [("PORT", "70000"), ("LOG_FORMAT", "xml"), ("ALLOW_INSECURE", "perhaps")])
def test_what_cannot_work_is_refused(field, value):
    with pytest.raises(SettingsError):
        load(PressSettings, "press", {f"OCTAVO_PRESS_{field}": value})


def test_a_key_is_not_in_what_is_printed_of_settings() -> None:
    assert "secret" not in repr(load(PressSettings, "press", {"OCTAVO_API_KEY": "secret"}))


@pytest.mark.parametrize("text", ["many", "-1", "65536", "²", ""])
def test_a_shared_port_that_is_none_is_refused_by_its_name(text):
    with pytest.raises(SettingsError, match=r"OCTAVO_METRICS_PORT=.* is not a port"):
        load_port("metrics_port", 9051, {"OCTAVO_METRICS_PORT": text})


def test_a_shared_port_has_a_default():
    assert load_port("metrics_port", 9051, {}) == 9051
    assert load_port("metrics_port", 9051, {"OCTAVO_METRICS_PORT": "0"}) == 0
