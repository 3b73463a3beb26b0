"""Makes it so: follows the deployments that the registry wants, routes their traffic, reports back.

A deployment's routes change only when all its new targets can answer; until then, and where one is refused, the old
ones go on. Runs on the event loop; what is in memory is `residency`'s affair.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from octavo.client import AsyncClient
from octavo.errors import DeadlineExceeded, FailedPrecondition, NotFound, OctavoError, ResourceExhausted, Unavailable
from octavo.serving import Telemetry
from octavo.v1.deployments_pb2 import (
    Deployment,
    DeploymentState,
    DeploymentStatus,
    ReportDeploymentStatusRequest,
    WatchDeploymentsRequest,
)
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import ServedModelState
from octavo.v1.registry_pb2 import ResolveVersionRequest
from services.inference.catalog import Catalog
from services.inference.precisions import Preferences
from services.inference.residency import RETRY_S, Residency
from services.inference.roster import Roster, Target
from services.inference.served_model import Key, ServedModel

MESSAGE_CHARACTERS = 2000
CHECK_S = 1.0
"""How often engines are looked after, in seconds."""


class Deployments:
    """The desired state, and how far this server is."""

    def __init__(
        self,
        *,
        client: AsyncClient,
        roster: Roster,
        catalog: Catalog,
        residency: Residency,
        preferences: Preferences,
        telemetry: Telemetry,
        server: str,
    ) -> None:
        self._client = client
        self._roster = roster
        self._catalog = catalog
        self._residency = residency
        self._preferences = preferences
        self._logger = telemetry.logger
        self._wanted: dict[str, Deployment] = {}
        self._statuses: dict[str, DeploymentStatus] = {}
        self._unreported: asyncio.Queue[str] = asyncio.Queue()
        self._server = server
        self.is_settled = False
        """Whether everything that was wanted at the start is ready or refused."""
        residency.changed = self._settle

    async def run(self) -> None:
        """Follows the registry until cancelled."""
        async with asyncio.TaskGroup() as group:
            for work in (self._watch, self._report, self._look_after):
                group.create_task(self._persist(work))

    async def find(self, reference: str, *, takes_turn: bool = True) -> ServedModel:
        """Who answers to a name, ready to be leased at once. Asks the registry only where nothing here answers.

        Raises as Roster.find; Unavailable where a model that is out of memory does not come back in time.
        """
        while True:
            served = await self._named(reference, takes_turn=takes_turn)
            if await self._residency.reach(served):
                return served

    async def _named(self, reference: str, *, takes_turn: bool) -> ServedModel:
        try:
            return self._roster.find(reference, takes_turn=takes_turn)
        except NotFound as error:
            if reference.startswith("deployments/"):
                raise
            try:
                version = await self._client.registry.ResolveVersion(ResolveVersionRequest(reference=reference))
            except Unavailable:
                raise error from None
        if not any(key.version == version.name for key in self._roster.models):
            raise FailedPrecondition(
                Reason.REASON_MODEL_NOT_SERVED,
                f"{reference} is {version.name}, which no deployment serves; create a deployment of it, then ask again",
                version=version.name,
            )
        return self._roster.find(version.name)

    async def _persist(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begins `work` again whenever it ends: a registry that goes away comes back, and a defect is told."""
        while True:
            try:
                await work()
            except OctavoError as error:
                self._logger.warning("cannot follow the registry, trying again: %s", error)
            except Exception:
                self._logger.exception("a defect in following the registry")
            await asyncio.sleep(RETRY_S)

    async def _watch(self) -> None:
        """One connection: everything that is wanted, then every change."""
        snapshot: dict[str, Deployment] | None = {}
        async for event in self._client.deployments.WatchDeployments(WatchDeploymentsRequest()):
            wanted = self._wanted if snapshot is None else snapshot
            match event.WhichOneof("change"):
                case "updated":
                    wanted[event.updated.name] = event.updated
                case "deleted":
                    wanted.pop(event.deleted, None)
                case "snapshot_complete" if snapshot is not None:
                    self._wanted, snapshot = snapshot, None
            if snapshot is None:
                targets = (target for deployment in self._wanted.values() for target in deployment.targets)
                await self._catalog.learn(target.resolved_version for target in targets if target.resolved_version)
                self._reconcile()

    def _reconcile(self) -> None:
        """Starts what is wanted and missing, switches what is ready, drains what nobody wants any more."""
        for name, deployment in self._wanted.items():
            targets = tuple(self._targets(deployment))
            self._roster.pending[name] = targets
            is_new = self._statuses.get(name, DeploymentStatus()).revision != deployment.revision
            for target in targets:
                served = self._roster.models.get(target.key)
                if served is None or (served.failure and is_new):
                    self._residency.start(target.key)
                elif not target.may_leave:
                    self._residency.wake(served)
        for name in self._statuses.keys() - self._wanted.keys():
            del self._statuses[name]
        for name in (self._roster.routes.keys() | self._roster.pending.keys()) - self._wanted.keys():
            self._roster.forget(name)
        self._settle()

    def _settle(self) -> None:
        for name, deployment in self._wanted.items():
            self._switch(name, deployment)
        self._roster.aliases = {
            target.version: target.resolved_version
            for deployment in self._wanted.values()
            for target in deployment.targets
            if target.resolved_version
        }
        used = {
            target.key
            for targets in (*self._roster.routes.values(), *self._roster.pending.values())
            for target in targets
        }
        for key in self._roster.models.keys() - used:
            self._residency.drop(key)
        states = [status.state for status in self._statuses.values()]
        self.is_settled = self.is_settled or DeploymentState.DEPLOYMENT_STATE_LOADING not in states

    def _switch(self, name: str, deployment: Deployment) -> None:
        """Gives the traffic to the new targets if all are ready, and notes how far the deployment is."""
        targets = self._roster.pending.get(name)
        if targets and all(self._can_answer(target) for target in targets):
            self._roster.routes[name] = targets
            del self._roster.pending[name]
        state, message = self._outlook(name)
        status = DeploymentStatus(
            server=self._server,
            revision=deployment.revision,
            state=state,
            message=message[:MESSAGE_CHARACTERS],
            serving_versions=[target.key.version for target in self._roster.routes.get(name, ())],
        )
        if self._statuses.get(name) != status:
            self._statuses[name] = status
            self._unreported.put_nowait(name)

    def _can_answer(self, target: Target) -> bool:
        served = self._roster.models[target.key]
        return served.is_available if target.may_leave else served.is_ready

    def _outlook(self, name: str) -> tuple[DeploymentState.ValueType, str]:
        """How far a deployment is, and what is to be said about it."""
        targets = self._roster.pending.get(name, self._roster.routes.get(name, ()))
        if not targets:
            return _FAILED, "its targets name no version; set the alias that they follow"
        models = [self._roster.models[target.key] for target in targets]
        if failures := [f"{served.key.version}: {served.failure}" for served in models if served.failure]:
            return _FAILED, "; ".join(failures)
        obstacles = [served for served in models if served.obstacle]
        text = "; ".join(f"{served.key.version}: {served.obstacle}" for served in obstacles)
        if name in self._roster.pending:
            is_stuck = any(isinstance(served.obstacle, ResourceExhausted) for served in obstacles)
            return _FAILED if is_stuck and not self._residency.may_find_room() else _LOADING, text
        unloaded = [served for served in models if served.state == ServedModelState.SERVED_MODEL_STATE_UNLOADED]
        names = ", ".join(served.key.name.removeprefix("servedModels/") for served in unloaded)
        return _READY, text or (f"out of memory until asked for: {names}" if names else "")

    async def _report(self) -> None:
        """Tells the registry of every change, in order, again and again until it has heard."""
        while True:
            name = await self._unreported.get()
            while status := self._statuses.get(name):
                try:
                    request = ReportDeploymentStatusRequest(name=name, status=status)
                    await self._client.deployments.ReportDeploymentStatus(request)
                except (Unavailable, DeadlineExceeded):
                    await asyncio.sleep(RETRY_S)
                    continue
                except OctavoError as error:  # changed or deleted meanwhile: the watch will say so
                    self._logger.warning("the registry refused the status of %s: %s", name, error)
                break

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            if self._residency.look_after():
                self._reconcile()

    def _targets(self, deployment: Deployment) -> Iterable[Target]:
        for target in deployment.targets:
            if version := target.resolved_version:
                files = (file.path for file in self._catalog[version].files)
                precision = target.precision or self._preferences.choose(files)
                weight = target.weight or (1 if len(deployment.targets) == 1 else 0)
                yield Target(Key(version, precision), weight, on_demand=target.on_demand)


_READY = DeploymentState.DEPLOYMENT_STATE_READY
_LOADING = DeploymentState.DEPLOYMENT_STATE_LOADING
_FAILED = DeploymentState.DEPLOYMENT_STATE_FAILED


def server_name(port: int) -> str:
    """What this server calls itself in its reports: the same after a restart, so that it replaces what it said before.

    Without a port of its own (0) the process tells servers of one machine apart.
    """
    return f"{socket.gethostname()}:{port}" if port else f"{socket.gethostname()}-{os.getpid()}"
