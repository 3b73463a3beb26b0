"""A model repository over deployments: loading a model asks the registry to deploy it, unloading deletes that.

What is served follows the registry's deployments, here as everywhere: this only writes the wish, and waits until this
server has fulfilled it.
"""

import asyncio
from contextlib import suppress

from google.protobuf.field_mask_pb2 import FieldMask

from octavo.client import AsyncClient
from octavo.errors import FailedPrecondition, NotFound
from octavo.v1.deployments_pb2 import (
    DeleteDeploymentRequest,
    Deployment,
    DeploymentState,
    DeploymentTarget,
    GetDeploymentRequest,
    UpdateDeploymentRequest,
)
from octavo.v1.errors_pb2 import Reason
from octavo.v1.registry_pb2 import ResolveVersionRequest
from services.inference.roster import Roster

POLL_S = 0.05
"""How often to ask how far a wish is, in seconds."""


class Repository:
    """Loads and unloads by name, and waits for what `server` makes of it; its `roster` shows what it lets go."""

    def __init__(self, client: AsyncClient, server: str, roster: Roster) -> None:
        self._client = client
        self._server = server
        self._roster = roster

    async def load(self, name: str, number: int | None) -> None:
        """Has version `number` of a model, or its newest, served under the model's name; returns when it is.

        A deployment that splits traffic or follows an alias was made with care: it is left as it is, unless a number
        is given. Raises NotFound for what the registry does not have, FailedPrecondition for what cannot be served.
        """
        existing = await self._existing(name)
        deployment = existing
        if existing is None or number is not None or _is_plain(existing, name):
            reference = f"models/{name}" if number is None else f"models/{name}/versions/{number}"
            version = await self._client.registry.ResolveVersion(ResolveVersionRequest(reference=reference))
            if existing is None or [target.version for target in existing.targets] != [version.name]:
                deployment = await self._deploy(name, version.name)
        if deployment is None:
            raise AssertionError("neither found nor made")
        await self._fulfilled(deployment)

    async def unload(self, name: str) -> None:
        """Deletes the deployment of a name and returns when this server has let go of it; nothing if there is none."""
        deployment = f"deployments/{name}"
        held = [s for key, s in self._roster.models.items() if deployment in self._roster.deployments_of(key)]
        with suppress(NotFound):
            await self._client.deployments.DeleteDeployment(DeleteDeploymentRequest(name=deployment))
        while True:
            is_known = deployment in self._roster.routes or deployment in self._roster.pending
            if not is_known and not any(served in self._roster.draining for served in held):
                return
            await asyncio.sleep(POLL_S)

    async def _existing(self, name: str) -> Deployment | None:
        try:
            return await self._client.deployments.GetDeployment(GetDeploymentRequest(name=f"deployments/{name}"))
        except NotFound:
            return None

    async def _deploy(self, name: str, version: str) -> Deployment:
        wanted = Deployment(name=f"deployments/{name}", targets=[DeploymentTarget(version=version, weight=1)])
        return await self._client.deployments.UpdateDeployment(
            UpdateDeploymentRequest(deployment=wanted, allow_missing=True, update_mask=FieldMask(paths=["targets"]))
        )

    async def _fulfilled(self, deployment: Deployment) -> None:
        """Waits until this server says that a deployment's revision is served. Raises FailedPrecondition if refused."""
        while True:
            for status in deployment.statuses:
                if status.server != self._server or status.revision < deployment.revision:
                    continue
                if status.state == DeploymentState.DEPLOYMENT_STATE_READY:
                    return
                if status.state == DeploymentState.DEPLOYMENT_STATE_FAILED:
                    raise FailedPrecondition(
                        Reason.REASON_MODEL_REFUSED,
                        f"{deployment.name} cannot be served: {status.message}",
                        deployment=deployment.name,
                    )
            await asyncio.sleep(POLL_S)
            deployment = await self._client.deployments.GetDeployment(GetDeploymentRequest(name=deployment.name))


def _is_plain(deployment: Deployment, name: str) -> bool:
    """Whether it serves one numbered version of the model of its own name, as `load` makes them."""
    return len(deployment.targets) == 1 and deployment.targets[0].version.startswith(f"models/{name}/versions/")
