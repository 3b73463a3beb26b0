"""The edge of the trainer: reads requests, asks supervisor, store and planner, builds replies."""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty

from octavo.errors import FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from octavo.formats.checkpoint import CheckpointFolder
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from octavo.v1.trainer_pb2_grpc import TrainerServicer as Base
from services.trainer import acceptance, disk_room, fork, job_comparison, job_pages, ranking
from services.trainer.acceptance import accepted_job, job_faults, request_digest
from services.trainer.checks.names import ID
from services.trainer.diagnosis import diagnose
from services.trainer.events import TERMINAL, EventReader
from services.trainer.job_measures import Curves, JobRecord
from services.trainer.job_statistics import statistics_of
from services.trainer.jobs import JobStore, etag
from services.trainer.planner import Planner
from services.trainer.replay_plan import plan_replay
from services.trainer.supervisor import Supervisor

Result = TypeVar("Result")
Context = grpc.aio.ServicerContext[Any, Any]

# How often a watch looks for new events: well below the 250 ms that people notice; one `stat` each.
POLL_INTERVAL_S: Final = 0.05
# How long CancelJob and PauseJob wait for the worker before they answer with what is.
OBEY_S: Final = 5.0
WATCH_BATCH: Final = 512


class TrainerServicer(Base):
    """Octavo's trainer over gRPC. What blocks runs on threads."""

    def __init__(self, supervisor: Supervisor, store: JobStore, planner: Planner) -> None:
        self._supervisor = supervisor
        self._store = store
        self._planner = planner

    async def PlanJob(self, request: pb.PlanJobRequest, context: Context) -> pb.PlanJobResponse:
        await self._plan(request.job, job_faults(request.job, "", ""))
        return pb.PlanJobResponse(plan=request.job.plan)

    async def PreviewExamples(self, request: pb.PreviewExamplesRequest, context: Context) -> pb.PreviewExamplesResponse:
        await self._plan(request.job, job_faults(request.job, "", ""))
        return await self._planner.preview(request)

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.Job:
        wrong = job_faults(request.job, request.job_id, request.request_id)
        digest = request_digest(request)
        if request.request_id:
            known = await asyncio.to_thread(self._store.find_request, request.request_id, digest)
            if known is not None:
                return await self._job(known.name)
        job = accepted_job(request)
        await self._plan(job, wrong)
        if request.validate_only:
            return job
        made = await self._supervised(self._supervisor.submit, job, request.request_id, digest)
        return await self._decorated(made)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.Job:
        return await self._job(_name(request.name))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        response = await asyncio.to_thread(job_pages.list_jobs, self._store, self._supervisor.read, request)
        await asyncio.to_thread(self._decorate, *response.jobs)
        return response

    async def UpdateJob(self, request: pb.UpdateJobRequest, context: Context) -> pb.Job:
        name = _name(request.job.name, "job.name")
        change = acceptance.job_change(request)
        return await self._decorated(await self._supervised(self._supervisor.update, name, request.job.etag, change))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.Job:
        name = _name(request.name)
        await self._supervised(self._supervisor.cancel, name)
        return await self._settled(name, lambda job: job.state in TERMINAL)

    async def PauseJob(self, request: pb.PauseJobRequest, context: Context) -> pb.Job:
        name = _name(request.name)
        await self._supervised(self._supervisor.pause, name)
        # Only when the process is gone is its memory free.
        is_at_work = functools.partial(self._supervisor.is_at_work, name)
        return await self._settled(name, lambda job: job.state != pb.JOB_STATE_RUNNING and not is_at_work())

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Context) -> pb.Job:
        return await self._decorated(await self._supervised(self._supervisor.resume, _name(request.name)))

    async def CheckpointJob(self, request: pb.CheckpointJobRequest, context: Context) -> pb.Checkpoint:
        name = _name(request.name)
        seen = (await self._job(name)).last_sequence
        command = await self._supervised(self._supervisor.request_checkpoint, name)
        async for event in self._events(name, seen):
            if event.command_applied.command.sequence == command:
                return (await self._job(name)).latest_checkpoint
            if event.state_change.state not in {pb.JOB_STATE_UNSPECIFIED, pb.JOB_STATE_RUNNING}:
                break
        raise FailedPrecondition(
            Reason.REASON_JOB_STATE, f"{name} stopped before the checkpoint; GetJob says how", job=name
        )

    async def ForkJob(self, request: pb.ForkJobRequest, context: Context) -> pb.Job:
        parent = await self._job(_name(request.name))
        acceptance.check_ids(request.job_id, request.request_id)
        job, digest = fork.forked_job(parent, request)
        directory = self._supervisor.directory(parent.name)
        job.parent_step = await asyncio.to_thread(fork.choose_step, CheckpointFolder(directory.checkpoints), request)
        live = await asyncio.to_thread(fork.inherited_settings, directory, job.parent_step, request)
        job.live.CopyFrom(live)
        await self._plan(job, job_faults(job, request.job_id, request.request_id))
        fork.check_steps(job)
        adopt = functools.partial(fork.adopt_checkpoint, directory, job.parent_step)
        made = await self._supervised(self._supervisor.submit, job, request.request_id, digest, adopt)
        return await self._decorated(made)

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Context) -> Empty:
        await self._supervised(self._supervisor.delete, _name(request.name), request.etag)
        return Empty()

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.JobEvent]:
        job = await self._job(_name(request.name))
        _check_after(job, request.after_sequence)
        if job.state in TERMINAL and request.after_sequence == job.last_sequence:
            return
        async for event in self._events(job.name, request.after_sequence):
            yield event

    async def ListMetrics(self, request: pb.ListMetricsRequest, context: Context) -> pb.ListMetricsResponse:
        job = await self._job(_name(request.parent, "parent"))
        return await asyncio.to_thread(job_pages.list_metrics, self._supervisor.directory(job.name), request)

    async def ListLogs(self, request: pb.ListLogsRequest, context: Context) -> pb.ListLogsResponse:
        job = await self._job(_name(request.parent, "parent"))
        return await asyncio.to_thread(job_pages.list_logs, self._supervisor.directory(job.name), request)

    async def CompareJobs(self, request: pb.CompareJobsRequest, context: Context) -> pb.CompareJobsResponse:
        job_comparison.check_request(request)
        jobs = [await self._job(_name(name, f"names[{index}]")) for index, name in enumerate(request.names)]
        return await asyncio.to_thread(job_comparison.compare, [self._record(job) for job in jobs], request)

    async def GetBestConfiguration(
        self, request: pb.GetBestConfigurationRequest, context: Context
    ) -> pb.GetBestConfigurationResponse:
        ranking.check_request(request)
        jobs = await asyncio.to_thread(self._store.list_newest)
        records = [self._record(job) for _, job in jobs if job.HasField("train")]
        return await asyncio.to_thread(ranking.best_configuration, records, request)

    async def DiagnoseJob(self, request: pb.DiagnoseJobRequest, context: Context) -> pb.Diagnosis:
        job = await self._job(_name(request.name))
        return diagnose(job, *await asyncio.to_thread(self._curves, job))

    async def GetTrainingStatistics(
        self, request: pb.GetTrainingStatisticsRequest, context: Context
    ) -> pb.TrainingStatistics:
        jobs = await asyncio.to_thread(self._store.list_newest)
        return statistics_of([job for _, job in jobs], self._supervisor.max_running_jobs, time.time())

    async def _plan(self, job: pb.Job, wrong: Mapping[str, str]) -> None:
        """Gives a job its plan. Its configuration is that of this plan, however exact the plan becomes later."""
        if job.HasField("replay"):
            if wrong:
                raise InvalidArgument.fields(dict(wrong))
            job.plan.CopyFrom(plan_replay(await self._job(job.replay.job), job.replay))
        else:
            job.plan.CopyFrom(await self._planner.plan(job, wrong))
        job.configuration_id = job.plan.configuration_id

    def _curves(self, job: pb.Job) -> Curves:
        return job_pages.read_curves(self._supervisor.directory(job.name))

    def _record(self, job: pb.Job) -> JobRecord:
        return JobRecord(job, functools.partial(self._curves, job))

    async def _events(self, name: str, after_sequence: int) -> AsyncIterator[pb.JobEvent]:
        """The events of a job from after a sequence number until its terminal state, as they are written."""
        directory = self._supervisor.directory(name)
        reader = EventReader(directory.path, after_sequence)
        while True:
            if not reader.has_news():
                if not directory.path.exists():
                    raise NotFound(Reason.REASON_JOB_NOT_FOUND, f"{name} was deleted meanwhile", job=name)
                await asyncio.sleep(POLL_INTERVAL_S)
                continue
            for event in await asyncio.to_thread(reader.read, WATCH_BATCH):
                yield event
                if event.state_change.state in TERMINAL:
                    return

    async def _settled(self, name: str, is_settled: Callable[[pb.Job], bool]) -> pb.Job:
        """The job once it is as asked, or as it is after a few seconds."""
        for _ in range(int(OBEY_S / POLL_INTERVAL_S)):
            job = await self._job(name)
            if await asyncio.to_thread(is_settled, job):
                return job
            await asyncio.sleep(POLL_INTERVAL_S)
        return await self._job(name)

    async def _job(self, name: str) -> pb.Job:
        return await self._decorated(await self._supervised(self._supervisor.read, name))

    async def _supervised(self, act: Callable[..., Result], *arguments: object) -> Result:
        """What the supervisor answers; ResourceExhausted where it has no room to make that durable."""
        try:
            return await asyncio.to_thread(act, *arguments)
        except OSError as error:
            if not disk_room.is_disk_full(error):
                raise
            raise disk_room.disk_full(self._supervisor.directory("jobs").path.parent) from error

    async def _decorated(self, job: pb.Job) -> pb.Job:
        await asyncio.to_thread(self._decorate, job)
        return job

    def _decorate(self, *jobs: pb.Job) -> None:
        """Add what is not kept but follows from the moment: etag, place in the queue and what a job waits for."""
        is_queued = any(job.state == pb.JOB_STATE_QUEUED for job in jobs)
        queue = self._supervisor.queue() if is_queued else {}
        positions = {name: position for position, name in enumerate(queue, 1)}
        for job in jobs:
            job.etag = etag(job)
            job.queue_position = 0
            if job.state == pb.JOB_STATE_QUEUED:
                job.queue_position = positions.get(job.name, 0)
                job.state_message = queue.get(job.name) or job.state_message


def _name(name: str, field: str = "name") -> str:
    prefix, _, job_id = name.partition("/")
    if prefix != "jobs" or not re.fullmatch(ID, job_id):
        raise InvalidArgument.field(
            field,
            f"{name[:90]!r} is not the name of a job, such as `jobs/j-1`",
            reason=Reason.REASON_INVALID_NAME,
        )
    return name


def _check_after(job: pb.Job, after_sequence: int) -> None:
    if after_sequence < 0:
        raise InvalidArgument.field("after_sequence", f"{after_sequence} is negative; 0 begins with the first event")
    if after_sequence > job.last_sequence:
        raise OutOfRange(
            Reason.REASON_EVENTS_EXPIRED,
            f"{job.name} has {job.last_sequence} events, not {after_sequence}; watch again from 0",
            job=job.name,
            last_sequence=job.last_sequence,
        )
