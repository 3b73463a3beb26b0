"""The Inspector service: reads a request, asks the domain in a worker thread, builds the reply."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration

from octavo.formats.architecture import Architecture
from octavo.v1 import inspector_pb2 as pb
from octavo.v1.inspector_pb2_grpc import InspectorServicer as Contract
from services.inspector import environment
from services.inspector.artifacts import Artifacts
from services.inspector.audit import audit
from services.inspector.comparison import compare
from services.inspector.configuration import parse_config, read_architecture
from services.inspector.contents import Contents
from services.inspector.graph_nodes import inspect_graph
from services.inspector.inspection import inspect
from services.inspector.memory_estimate import estimate
from services.inspector.quantization import analyze
from services.inspector.reader import Budget
from services.inspector.settings import InspectorSettings
from services.inspector.system import SystemProbe
from services.inspector.tensor_list import list_tensors
from services.inspector.value_questions import get_statistics, read_tensor

Answer = TypeVar("Answer")


class InspectorServicer(Contract):
    """Answers about artifacts and the machine. `executor` runs what blocks."""

    def __init__(
        self, artifacts: Artifacts, system: SystemProbe, executor: Executor, settings: InspectorSettings
    ) -> None:
        self._artifacts = artifacts
        self._system = system
        self._executor = executor
        self._settings = settings

    async def InspectArtifact(self, request: pb.InspectArtifactRequest, context: Any) -> pb.ArtifactInspection:
        started = time.perf_counter()
        budget = Budget(self._settings.header_read_limit_bytes)
        contents = await self._open(request.artifact, budget)
        inspection = await self._work(budget, lambda: inspect(contents, request.path))
        inspection.read_bytes = budget.fetched_bytes
        inspection.elapsed.CopyFrom(_since(started))
        return inspection

    async def ListTensors(self, request: pb.ListTensorsRequest, context: Any) -> pb.ListTensorsResponse:
        budget = Budget(self._settings.header_read_limit_bytes)
        contents = await self._open(request.artifact, budget)
        return await self._work(budget, lambda: list_tensors(contents, request))

    async def GetTensorStatistics(
        self, request: pb.GetTensorStatisticsRequest, context: Any
    ) -> pb.GetTensorStatisticsResponse:
        budget = Budget(self._settings.value_read_limit_bytes)
        contents = await self._open(request.artifact, budget)
        return await self._work(budget, lambda: get_statistics(contents, request))

    async def ReadTensor(self, request: pb.ReadTensorRequest, context: Any) -> pb.ReadTensorResponse:
        budget = Budget(self._settings.value_read_limit_bytes)
        contents = await self._open(request.artifact, budget)
        return await self._work(budget, lambda: read_tensor(contents, request))

    async def CompareArtifacts(self, request: pb.CompareArtifactsRequest, context: Any) -> pb.ArtifactComparison:
        budget = Budget(self._settings.value_read_limit_bytes)
        contents = await self._open(request.artifact, budget)
        baseline = await self._open(request.baseline, budget, field="baseline")
        return await self._work(budget, lambda: compare(contents, baseline, request))

    async def AuditArtifact(self, request: pb.AuditArtifactRequest, context: Any) -> pb.ArtifactAudit:
        budget = Budget(self._settings.value_read_limit_bytes)
        contents = await self._open(request.artifact, budget)
        return await self._work(budget, lambda: audit(contents, request.path))

    async def InspectGraph(self, request: pb.InspectGraphRequest, context: Any) -> pb.GraphInspection:
        budget = Budget(self._settings.header_read_limit_bytes)
        contents = await self._open(request.artifact, budget)
        return await self._work(budget, lambda: inspect_graph(contents, request))

    async def EstimateMemory(self, request: pb.EstimateMemoryRequest, context: Any) -> pb.MemoryEstimate:
        if request.WhichOneof("subject") == "config_json":
            architecture = Architecture.from_config(parse_config("config_json", request.config_json.encode()))
            return await self._work(Budget(0), lambda: self._estimate(architecture, request))
        budget = Budget(self._settings.header_read_limit_bytes)
        contents = await self._open(request.artifact, budget)
        result = await self._work(budget, lambda: self._estimate(read_architecture(contents), request))
        result.artifact = contents.artifact.name
        return result

    async def AnalyzeQuantization(
        self, request: pb.AnalyzeQuantizationRequest, context: Any
    ) -> pb.QuantizationAnalysis:
        budget = Budget(self._settings.value_read_limit_bytes)
        contents = await self._open(request.artifact, budget)
        return await self._work(budget, lambda: analyze(contents, request))

    async def DiagnoseSystem(self, request: pb.DiagnoseSystemRequest, context: Any) -> pb.SystemDiagnosis:
        return await self._work(Budget(0), self._system.diagnose)

    async def ValidateEnvironment(
        self, request: pb.ValidateEnvironmentRequest, context: Any
    ) -> pb.EnvironmentValidation:
        is_reachable = await self._artifacts.is_reachable()
        checks = [environment.check_registry(is_reachable=is_reachable, address=self._settings.registry)]
        budget = Budget(self._settings.header_read_limit_bytes)
        checks += await self._work(budget, self._check_machine)
        if request.artifact:
            contents = await self._open(request.artifact, budget)
            checks += await self._work(budget, lambda: self._check_artifact(contents))
        return environment.validation(checks)

    def _check_machine(self) -> list[pb.EnvironmentCheck]:
        return [*environment.check_software(), *environment.check_machine(self._system.diagnose())]

    def _check_artifact(self, contents: Contents) -> list[pb.EnvironmentCheck]:
        inspection = inspect(contents, "")
        memory = None
        if inspection.HasField("anatomy"):
            memory = self._estimate(read_architecture(contents), pb.EstimateMemoryRequest())
        return list(environment.check_artifact(inspection, memory))

    def _estimate(self, architecture: Architecture, request: pb.EstimateMemoryRequest) -> pb.MemoryEstimate:
        return estimate(architecture, request, self._system.available_bytes())

    async def _open(self, name: str, budget: Budget, field: str = "artifact") -> Contents:
        return Contents(await self._artifacts.resolve(name, field), self._artifacts.opener(), budget)

    async def _work(self, budget: Budget, ask: Callable[[], Answer]) -> Answer:
        """Runs `ask` in a worker thread within the present trace; when the caller leaves, its reads end."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, contextvars.copy_context().run, ask)
        except asyncio.CancelledError:
            budget.cancel()
            raise


def _since(started: float) -> Duration:
    elapsed = Duration()
    elapsed.FromNanoseconds(int((time.perf_counter() - started) * 1e9))
    return elapsed
