"""The worker's line to the registry: a registry that is away is waited for, since hours of training may hang on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from octavo.addresses import Addresses
from octavo.client import Client
from octavo.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.events import EventLog
from services.trainer.job_directory import JobDirectory, Launch

_WAITS_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SLICE_S: Final = 0.2

Result = TypeVar("Result")


class RegistryLink:
    """Calls of one worker to the registry. `heed` is called while waiting, and may raise to stop it."""

    def __init__(self, directory: JobDirectory, log: EventLog, heed: Callable[[], None]) -> None:
        self._directory = directory
        self._log = log
        self._heed = heed
        self._launch: Launch | None = None
        self._client: Client | None = None

    def call(self, act: Callable[[Client], Result]) -> Result:
        """What `act` returns. It may be called several times, so it must do no harm when repeated.

        Unavailable when the registry stayed away for as long as the settings allow.
        """
        began_s = time.monotonic()
        attempt = 0
        while True:
            try:
                return act(self._connected())
            except (Unavailable, DeadlineExceeded, ResourceExhausted) as error:
                # A registry without room is waited for as one that is away: hours of training hang on it.
                if isinstance(error, ResourceExhausted) and error.reason != Reason.REASON_STORAGE_FULL:
                    raise
                if time.monotonic() - began_s > self._directory.read_launch().registry_patience_s:
                    raise
                if attempt == 0:
                    message = f"the registry does not answer ({error.message}); waiting for it"
                    self._log.log(pb.LOG_SEVERITY_WARNING, message)
            self._wait(_WAITS_S[min(attempt, len(_WAITS_S) - 1)])
            attempt += 1

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> Client:
        """A client for where the registry is now: a service that restarted may have written another address."""
        launch = self._directory.read_launch()
        if self._client is None or launch != self._launch:
            self.close()
            self._client = Client(Addresses(registry=launch.registry), api_key=launch.api_key)
            self._launch = launch
        return self._client

    def _wait(self, duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            self._heed()
            time.sleep(min(_SLICE_S, max(0.0, end_s - time.monotonic())))
