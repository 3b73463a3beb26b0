"""The ports of a suite: the usual ones, shifted, or any that are free."""

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from octavo.addresses import METRICS_PORTS, PORTS
from octavo.cli.failure import Refusal
from octavo.serving.settings import load_shared

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """Where each program listens, and where it shows its metrics."""

    programs: Mapping[str, int]
    metrics: Mapping[str, int]

    @property
    def addresses(self) -> dict[str, str]:
        """`host:port` of each program."""
        return {name: f"{HOST}:{port}" for name, port in self.programs.items()}


def usual(offset: int = 0) -> Ports:
    """The default ports, or those of OCTAVO_<PROGRAM>_PORT, plus `offset`. Raises Refusal when one is no port."""
    programs = {name: _number(f"{name}_port", port) + offset for name, port in PORTS.items()}
    metrics = {name: port + offset for name, port in METRICS_PORTS.items()}
    for name, port in (programs | metrics).items():
        if not 0 < port < 65536:
            raise Refusal(f"{name} cannot have port {port}", "ports go from 1 to 65535")
    return Ports(programs, metrics)


def free() -> Ports:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2 * len(PORTS))]
        for opened in sockets:
            opened.bind((HOST, 0))
        numbers = [opened.getsockname()[1] for opened in sockets]
    return Ports(dict(zip(PORTS, numbers, strict=False)), dict(zip(PORTS, numbers[len(PORTS) :], strict=True)))


def require_free(ports: Ports) -> None:
    """Raises Refusal that names every program whose port is taken."""
    taken = [f"{port} ({name})" for name, port in ports.programs.items() if not _is_free(port)]
    taken += [f"{port} ({name} metrics)" for name, port in ports.metrics.items() if not _is_free(port)]
    if taken:
        raise Refusal(
            f"these ports are taken: {', '.join(taken)}",
            "is another suite running? `octavo status` tells; `octavo up --port-offset 100` takes others, "
            "`--any-ports` whatever is free",
        )


def _is_free(port: int) -> bool:
    with socket.socket() as opened:
        # What a finished connection left behind (TIME_WAIT) does not keep a server from listening.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((HOST, port))
        except OSError:
            return False
    return True


def _number(variable: str, default: int) -> int:
    text = load_shared(variable, str(default))
    try:
        return int(text)
    except ValueError:
        raise Refusal(f"OCTAVO_{variable.upper()}={text} is no port", "ports go from 1 to 65535") from None
