"""The registry's four gRPC services: each call reads its request, calls the domain and answers."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from octavo.serving.auth import key_digest
from octavo.v1 import blobs_pb2 as blob_messages
from octavo.v1 import datasets_pb2 as dataset_messages
from octavo.v1 import deployments_pb2 as deployment_messages
from octavo.v1 import registry_pb2 as messages
from octavo.v1.blobs_pb2_grpc import BlobsServicer as BlobsContract
from octavo.v1.datasets_pb2_grpc import DatasetsServicer as DatasetsContract
from octavo.v1.deployments_pb2_grpc import DeploymentsServicer as DeploymentsContract
from octavo.v1.registry_pb2_grpc import RegistryServicer as RegistryContract
from services.registry import (
    aliases,
    audit,
    counts,
    datasets,
    deployments,
    models,
    names,
    revisions,
    version_comparison,
    versions,
)
from services.registry.blob_files import BlobFiles
from services.registry.dataset_content import DatasetContent
from services.registry.transactions import Transactions
from services.registry.uploads import Uploads
from services.registry.watches import Watches

Context = grpc.aio.ServicerContext[Any, Any]

_ANONYMOUS = "anonymous"


class Access:
    """Transactions, and by whose hand: a key's fingerprint where keys are checked, `anonymous` elsewhere."""

    def __init__(self, transactions: Transactions, *, keys_are_checked: bool) -> None:
        self.transactions = transactions
        self._keys_are_checked = keys_are_checked

    def actor(self, context: Context) -> str:
        """Who calls, as the audit trail says it."""
        if not self._keys_are_checked:
            return _ANONYMOUS
        metadata = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
        key = metadata.get("authorization", "").removeprefix("Bearer ") or metadata.get("x-api-key", "")
        return f"key:{key_digest(key).removeprefix('sha256:')[:12]}"


class RegistryServicer(RegistryContract):
    """octavo.v1.Registry."""

    def __init__(self, access: Access, watches: Watches, files: BlobFiles) -> None:
        self._access = access
        self._watches = watches
        self._files = files

    async def CreateModel(self, request: messages.CreateModelRequest, context: Context) -> messages.Model:
        return await self._access.transactions.create(
            request, messages.Model, lambda change: models.create(change, request), actor=self._access.actor(context)
        )

    async def GetModel(self, request: messages.GetModelRequest, context: Context) -> messages.Model:
        return await self._access.transactions.read(
            lambda connection: models.get(connection, names.model_in(request.name))
        )

    async def ListModels(self, request: messages.ListModelsRequest, context: Context) -> messages.ListModelsResponse:
        return await self._access.transactions.read(lambda connection: models.list_models(connection, request))

    async def UpdateModel(self, request: messages.UpdateModelRequest, context: Context) -> messages.Model:
        return await self._access.transactions.write(
            lambda change: models.update_model(change, request), actor=self._access.actor(context)
        )

    async def DeleteModel(self, request: messages.DeleteModelRequest, context: Context) -> Empty:
        return await self._access.transactions.write(
            lambda change: models.delete_model(change, request), actor=self._access.actor(context)
        )

    async def CreateVersion(self, request: messages.CreateVersionRequest, context: Context) -> messages.Version:
        return await self._access.transactions.create(
            request,
            messages.Version,
            lambda change: versions.create(change, self._files, request),
            actor=self._access.actor(context),
        )

    async def GetVersion(self, request: messages.GetVersionRequest, context: Context) -> messages.Version:
        return await self._access.transactions.read(
            lambda connection: versions.get(connection, *names.version_in(request.name))
        )

    async def ListVersions(
        self, request: messages.ListVersionsRequest, context: Context
    ) -> messages.ListVersionsResponse:
        return await self._access.transactions.read(lambda connection: versions.list_versions(connection, request))

    async def UpdateVersion(self, request: messages.UpdateVersionRequest, context: Context) -> messages.Version:
        return await self._access.transactions.write(
            lambda change: versions.update_version(change, request), actor=self._access.actor(context)
        )

    async def DeleteVersion(self, request: messages.DeleteVersionRequest, context: Context) -> Empty:
        return await self._access.transactions.write(
            lambda change: versions.delete_version(change, request), actor=self._access.actor(context)
        )

    async def ResolveVersion(self, request: messages.ResolveVersionRequest, context: Context) -> messages.Version:
        return await self._access.transactions.read(lambda connection: versions.resolve(connection, request.reference))

    async def CompareVersions(
        self, request: messages.CompareVersionsRequest, context: Context
    ) -> messages.CompareVersionsResponse:
        return await self._access.transactions.read(lambda connection: version_comparison.compare(connection, request))

    async def SetAlias(self, request: messages.SetAliasRequest, context: Context) -> messages.Alias:
        return await self._access.transactions.write(
            lambda change: aliases.set_alias(change, request), actor=self._access.actor(context)
        )

    async def DeleteAlias(self, request: messages.DeleteAliasRequest, context: Context) -> Empty:
        return await self._access.transactions.write(
            lambda change: aliases.delete_alias(change, request), actor=self._access.actor(context)
        )

    async def WatchEvents(
        self, request: messages.WatchEventsRequest, context: Context
    ) -> AsyncIterator[messages.AuditEvent]:
        async for event in self._watches.events(request):
            yield event

    async def ListAuditEvents(
        self, request: messages.ListAuditEventsRequest, context: Context
    ) -> messages.ListAuditEventsResponse:
        return await self._access.transactions.read(lambda connection: audit.list_events(connection, request))

    async def VerifyAudit(self, request: messages.VerifyAuditRequest, context: Context) -> messages.VerifyAuditResponse:
        return await self._access.transactions.read(audit.verify)

    async def GetRegistryStatistics(
        self, request: messages.GetRegistryStatisticsRequest, context: Context
    ) -> messages.RegistryStatistics:
        return await self._access.transactions.read(counts.count)


class DatasetsServicer(DatasetsContract):
    """octavo.v1.Datasets."""

    def __init__(self, access: Access, content: DatasetContent) -> None:
        self._access = access
        self._content = content

    async def PreviewDataset(
        self, request: dataset_messages.PreviewDatasetRequest, context: Context
    ) -> dataset_messages.PreviewDatasetResponse:
        return await self._content.preview(request)

    async def CreateDataset(
        self, request: dataset_messages.CreateDatasetRequest, context: Context
    ) -> dataset_messages.Dataset:
        return await self._content.create(request, self._access.actor(context))

    async def GetDataset(
        self, request: dataset_messages.GetDatasetRequest, context: Context
    ) -> dataset_messages.Dataset:
        return await self._access.transactions.read(
            lambda connection: datasets.get(connection, names.dataset_in(request.name))
        )

    async def ListDatasets(
        self, request: dataset_messages.ListDatasetsRequest, context: Context
    ) -> dataset_messages.ListDatasetsResponse:
        return await self._access.transactions.read(lambda connection: datasets.list_datasets(connection, request))

    async def UpdateDataset(
        self, request: dataset_messages.UpdateDatasetRequest, context: Context
    ) -> dataset_messages.Dataset:
        return await self._content.update(request, self._access.actor(context))

    async def DeleteDataset(self, request: dataset_messages.DeleteDatasetRequest, context: Context) -> Empty:
        return await self._access.transactions.write(
            lambda change: datasets.delete_dataset(change, request), actor=self._access.actor(context)
        )

    async def RepairDataset(
        self, request: dataset_messages.RepairDatasetRequest, context: Context
    ) -> dataset_messages.RepairDatasetResponse:
        return await self._content.repair(request, self._access.actor(context))

    async def ReadRows(
        self, request: dataset_messages.ReadRowsRequest, context: Context
    ) -> dataset_messages.ReadRowsResponse:
        return await self._content.read_rows(request)


class DeploymentsServicer(DeploymentsContract):
    """octavo.v1.Deployments."""

    def __init__(self, access: Access, watches: Watches) -> None:
        self._access = access
        self._watches = watches

    async def CreateDeployment(
        self, request: deployment_messages.CreateDeploymentRequest, context: Context
    ) -> deployment_messages.Deployment:
        return await self._access.transactions.create(
            request,
            deployment_messages.Deployment,
            lambda change: deployments.create(change, request.deployment_id, request.deployment),
            actor=self._access.actor(context),
        )

    async def GetDeployment(
        self, request: deployment_messages.GetDeploymentRequest, context: Context
    ) -> deployment_messages.Deployment:
        return await self._access.transactions.read(
            lambda connection: deployments.get(connection, names.deployment_in(request.name))
        )

    async def ListDeployments(
        self, request: deployment_messages.ListDeploymentsRequest, context: Context
    ) -> deployment_messages.ListDeploymentsResponse:
        return await self._access.transactions.read(
            lambda connection: deployments.list_deployments(connection, request)
        )

    async def UpdateDeployment(
        self, request: deployment_messages.UpdateDeploymentRequest, context: Context
    ) -> deployment_messages.Deployment:
        return await self._access.transactions.write(
            lambda change: deployments.update_deployment(change, request), actor=self._access.actor(context)
        )

    async def DeleteDeployment(self, request: deployment_messages.DeleteDeploymentRequest, context: Context) -> Empty:
        return await self._access.transactions.write(
            lambda change: deployments.delete_deployment(change, request), actor=self._access.actor(context)
        )

    async def Promote(
        self, request: deployment_messages.PromoteRequest, context: Context
    ) -> deployment_messages.Deployment:
        return await self._access.transactions.write(
            lambda change: revisions.promote(change, request), actor=self._access.actor(context)
        )

    async def Rollback(
        self, request: deployment_messages.RollbackRequest, context: Context
    ) -> deployment_messages.Deployment:
        return await self._access.transactions.write(
            lambda change: revisions.rollback(change, request), actor=self._access.actor(context)
        )

    async def WatchDeployments(
        self, request: deployment_messages.WatchDeploymentsRequest, context: Context
    ) -> AsyncIterator[deployment_messages.DeploymentEvent]:
        async for event in self._watches.deployments(request):
            yield event

    async def ReportDeploymentStatus(
        self, request: deployment_messages.ReportDeploymentStatusRequest, context: Context
    ) -> deployment_messages.Deployment:
        return await self._access.transactions.write(
            lambda change: deployments.report(change, request), actor=self._access.actor(context)
        )


class BlobsServicer(BlobsContract):
    """octavo.v1.Blobs."""

    def __init__(self, access: Access, uploads: Uploads) -> None:
        self._access = access
        self._uploads = uploads

    async def WriteBlob(
        self, request_iterator: AsyncIterator[blob_messages.WriteBlobRequest], context: Context
    ) -> blob_messages.Blob:
        return await self._uploads.write(request_iterator, self._access.actor(context))

    async def QueryWrite(
        self, request: blob_messages.QueryWriteRequest, context: Context
    ) -> blob_messages.QueryWriteResponse:
        return await self._uploads.query(request.upload)

    async def ReadBlob(
        self, request: blob_messages.ReadBlobRequest, context: Context
    ) -> AsyncIterator[blob_messages.ReadBlobResponse]:
        async with aclosing(self._uploads.read(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def StatBlob(self, request: blob_messages.StatBlobRequest, context: Context) -> blob_messages.Blob:
        return await self._uploads.stat(request.name)
