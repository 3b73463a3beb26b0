"""Whether a program answers: grpc.health.v1 for services, /healthz for the gateway."""

import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from octavo.client import channel

TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Health:
    """What a program says of itself: `ready`, `not ready`, or `away` when nothing answers."""

    state: str
    detail: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether it takes calls."""
        return self.state == "ready"


READY = Health("ready")


def check(program: str, address: str, timeout_s: float = TIMEOUT_S) -> Health:
    """Asks a program once."""
    return _check_gateway(address, timeout_s) if program == "gateway" else _check_service(address, timeout_s)


def _check_service(address: str, timeout_s: float) -> Health:
    with channel.open_blocking(address, ()) as opened:
        stub: Any = health_pb2_grpc.HealthStub(opened)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=timeout_s)
        except grpc.RpcError as error:
            return Health("away", channel.translated(error).reason_name)
    is_serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return (
        READY if is_serving else Health("not ready", health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    )


def _check_gateway(address: str, timeout_s: float) -> Health:
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=timeout_s):
            return READY
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
            return Health("not ready", "a program behind it is not ready")
        return Health("away", f"HTTP {error.code}: this is no gateway of ours")
    except OSError as error:
        return Health("away", str(getattr(error, "reason", error)))
