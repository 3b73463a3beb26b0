"""Runs the front door: `python -m gateway`."""

import socket
import sys

import uvicorn
from starlette.applications import Starlette
from uvicorn.supervisors import Multiprocess

from gateway import app
from gateway.protocol import BoundedProtocol
from gateway.settings import GatewaySettings
from octavo.serving import ProcessMetrics, SettingsError, Telemetry, configure_logging, load


def application() -> Starlette:
    """The application as the environment describes it: what each worker process makes for itself."""
    settings = load(GatewaySettings, "gateway")
    configure_logging(settings.log_format)
    return app.create(settings, Telemetry.from_settings("gateway", ProcessMetrics(), settings))


def _config(settings: GatewaySettings) -> uvicorn.Config:
    return uvicorn.Config(
        "gateway.__main__:application",
        factory=True,
        workers=settings.workers,
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=int(settings.drain_s),
    )


def _listener(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; OCTAVO_GATEWAY_PORT chooses another"
        ) from None


def main() -> None:
    """Serves until SIGTERM or SIGINT; then lets requests under way finish."""
    try:
        settings = load(GatewaySettings, "gateway")
        listener = _listener(settings)
    except SettingsError as error:
        sys.exit(f"gateway: {error}")
    config = _config(settings)
    with listener:
        if settings.workers > 1:
            Multiprocess(config, sockets=[listener]).run()
        else:
            uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
