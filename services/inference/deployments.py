"""Makes it so: follows the deployments that the registry wants, loads and drains versions, reports back.

A deployment's routes change only when all its new targets are ready; until then, and where one is refused, the old
ones go on. Runs on the event loop; loading happens in threads.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from octavo.client import AsyncClient
from octavo.errors import DeadlineExceeded, FailedPrecondition, Internal, NotFound, OctavoError, Unavailable
from octavo.serving import Telemetry
from octavo.v1.deployments_pb2 import (
    Deployment,
    DeploymentState,
    DeploymentStatus,
    Precision,
    ReportDeploymentStatusRequest,
    WatchDeploymentsRequest,
)
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import ServedModelState
from octavo.v1.registry_pb2 import GetVersionRequest, ResolveVersionRequest
from services.inference.bundle_cache import BundleCache
from services.inference.loader import Loader
from services.inference.roster import Roster, Target
from services.inference.served_model import Key, ServedModel

RETRY_S = 1.0
"""How long to wait before asking again a registry that did not answer, in seconds."""
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
        bundles: BundleCache,
        loader: Loader,
        telemetry: Telemetry,
        drain_s: float,
        server: str,
    ) -> None:
        self._client = client
        self._roster = roster
        self._bundles = bundles
        self._loader = loader
        self._logger = telemetry.logger
        self._drain_s = drain_s
        self._wanted: dict[str, Deployment] = {}
        self._statuses: dict[str, DeploymentStatus] = {}
        self._unreported: asyncio.Queue[str] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading = asyncio.Lock()
        self._server = server
        self.is_settled = False
        """Whether everything that was wanted at the start is ready or refused."""

    async def run(self) -> None:
        """Follows the registry until cancelled."""
        async with asyncio.TaskGroup() as group:
            for work in (self._watch, self._report, self._look_after):
                group.create_task(self._persist(work))

    async def close(self) -> None:
        """Stops every engine; what they still do is cut off."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(served.drain(0) for served in self._roster.models.values()))

    async def find(self, reference: str) -> ServedModel:
        """Who answers to a name. Asks the registry only where nothing here does. Raises as Roster.find."""
        try:
            return self._roster.find(reference)
        except NotFound as error:
            if reference.startswith("deployments/"):
                raise
            try:
                version = await self._client.registry.ResolveVersion(ResolveVersionRequest(reference=reference))
            except Unavailable:
                raise error from None
        served = self._roster.models.get(Key(version.name, Precision.PRECISION_FP32))
        if served is None:
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
                self._reconcile()

    def _reconcile(self) -> None:
        """Starts what is wanted and missing, switches what is ready, drains what nobody wants any more."""
        for name, deployment in self._wanted.items():
            targets = tuple(_targets(deployment))
            is_new = self._statuses.get(name, DeploymentStatus()).revision != deployment.revision
            for target in targets:
                served = self._roster.models.get(target.key)
                if served is None or (served.failure and is_new):
                    self._start(target.key)
            self._roster.pending[name] = targets
        for table in (self._roster.routes, self._roster.pending, self._statuses):
            for name in table.keys() - self._wanted.keys():
                del table[name]
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
            self._drop(key)
        states = [status.state for status in self._statuses.values()]
        self.is_settled = self.is_settled or DeploymentState.DEPLOYMENT_STATE_LOADING not in states

    def _switch(self, name: str, deployment: Deployment) -> None:
        """Gives the traffic to the new targets if all are ready, and notes how far the deployment is."""
        targets = self._roster.pending.get(name)
        state, message = DeploymentState.DEPLOYMENT_STATE_READY, ""
        if targets is not None:
            models = [self._roster.models[target.key] for target in targets]
            failures = [f"{served.key.version}: {served.failure}" for served in models if served.failure]
            if targets and all(served.is_ready for served in models):
                self._roster.routes[name] = targets
                del self._roster.pending[name]
            elif failures or not targets:
                state = DeploymentState.DEPLOYMENT_STATE_FAILED
                message = "; ".join(failures) or "its targets name no version; set the alias that they follow"
            else:
                state = DeploymentState.DEPLOYMENT_STATE_LOADING
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

    def _start(self, key: Key) -> None:
        served = ServedModel(key)
        self._roster.models[key] = served
        self._spawn(self._load(served))

    def _drop(self, key: Key) -> None:
        served = self._roster.models.pop(key)
        self._roster.draining.append(served)
        self._spawn(self._drain(served))

    async def _drain(self, served: ServedModel) -> None:
        await served.drain(self._drain_s)
        self._roster.draining.remove(served)
        self._logger.info("unloaded", extra={"version": served.key.version})
        async with self._loading:  # not while a download is under way
            models = [*self._roster.models.values(), *self._roster.draining]
            directories = {model.loaded.directory for model in models if model.loaded}
            await asyncio.to_thread(self._bundles.keep_only, directories)

    async def _load(self, served: ServedModel) -> None:
        while self._roster.models.get(served.key) is served:
            try:
                async with self._loading:
                    await self._load_once(served)
                break
            except (Unavailable, DeadlineExceeded) as error:
                self._logger.warning("cannot fetch %s, trying again: %s", served.key.version, error)
                await asyncio.sleep(RETRY_S)
            except OctavoError as error:
                self._logger.error("refused %s: %s", served.key.version, error)
                served.fail(error)
                break
            except Exception as error:
                self._logger.exception("cannot load %s", served.key.version)
                served.fail(Internal(Reason.REASON_INTERNAL, f"it cannot be loaded: {error}"))
                break
        self._settle()

    async def _load_once(self, served: ServedModel) -> None:
        version = await self._client.registry.GetVersion(GetVersionRequest(name=served.key.version))
        directory = await self._bundles.directory(version)
        served.state = ServedModelState.SERVED_MODEL_STATE_VERIFYING
        loaded = await asyncio.to_thread(self._loader.load, directory, served.key)
        if self._roster.models.get(served.key) is not served:
            await asyncio.to_thread(loaded.stop)  # unwanted before it was ready
            return
        served.ready(loaded)
        self._logger.info("ready", extra={"version": served.key.version, "seconds": round(served.load_s, 3)})

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
        """Replaces engines that a defect has ended."""
        while True:
            await asyncio.sleep(CHECK_S)
            for key, served in list(self._roster.models.items()):
                if served.loaded and not served.loaded.is_alive:
                    self._logger.error("the engine of %s is gone, loading it again", key.version)
                    self._start(key)
                    self._reconcile()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def server_name(port: int) -> str:
    """What this server calls itself in its reports: the same after a restart, so that it replaces what it said before.

    Without a port of its own (0) the process tells servers of one machine apart.
    """
    return f"{socket.gethostname()}:{port}" if port else f"{socket.gethostname()}-{os.getpid()}"


def _targets(deployment: Deployment) -> Iterable[Target]:
    for target in deployment.targets:
        if target.resolved_version:
            precision = target.precision or Precision.PRECISION_FP32
            weight = target.weight or (1 if len(deployment.targets) == 1 else 0)
            yield Target(Key(target.resolved_version, precision), weight)
