"""Runs the front door: `python -m gateway`."""

import sys

import uvicorn
from starlette.applications import Starlette

from gateway import app
from gateway.protocol import BoundedProtocol
from gateway.settings import GatewaySettings
from octavo.serving import ProcessMetrics, SettingsError, Telemetry, configure_logging, load


def application() -> Starlette:
    """The application as the environment describes it: what each worker process makes for itself."""
    settings = load(GatewaySettings, "gateway")
    configure_logging(settings.log_format)
    return app.create(settings, Telemetry.from_settings("gateway", ProcessMetrics(), settings))


def main() -> None:
    """Serves until SIGTERM or SIGINT; then lets requests under way finish."""
    try:
        settings = load(GatewaySettings, "gateway")
    except SettingsError as error:
        sys.exit(f"gateway: {error}")
    uvicorn.run(
        "gateway.__main__:application",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=int(settings.drain_s),
    )


if __name__ == "__main__":
    main()
