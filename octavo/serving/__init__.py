"""How a program stands up: settings, telemetry, one interceptor for every call, health, draining."""

from octavo.serving.service import Service, running, serve
from octavo.serving.settings import ProgramSettings, SettingsError, load
from octavo.serving.telemetry import ProcessMetrics, Telemetry, configure_logging

__all__ = [
    "ProcessMetrics",
    "ProgramSettings",
    "Service",
    "SettingsError",
    "Telemetry",
    "configure_logging",
    "load",
    "running",
    "serve",
]
