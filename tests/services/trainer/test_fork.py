"""A fork goes on from its parent's checkpoint with a few fields changed; live changes are repeated by a resumed run."""

import os
import signal

import pytest

from octavo.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from octavo.formats.checkpoint import CheckpointFolder, arrays_equal
from octavo.v1 import trainer_pb2 as pb
from services.trainer.job_directory import JobDirectory

pytestmark = pytest.mark.slow


def directory_of(suite, name):
    return JobDirectory(suite.directory / "trainer" / name)


def scaled(name, scale):
    return pb.UpdateJobRequest(job=pb.Job(name=name, live=pb.LiveSettings(learning_rate_scale=scale)))


async def test_a_fork_without_changes_ends_where_its_parent_did(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        parent = await suite.create(client, suite.spec())
        await suite.finished(client, parent.name)
        for changes, complaint in (
            ({"step": 3}, NotFound),
            ({"step": 40}, InvalidArgument),
            ({"update_mask": {"paths": ["architecture.layers"]}}, InvalidArgument),
            ({"update_mask": {"paths": ["nonsense"]}}, InvalidArgument),
        ):
            with pytest.raises(complaint):
                await client.trainer.ForkJob(pb.ForkJobRequest(name=parent.name, **changes))
        fork = await client.trainer.ForkJob(pb.ForkJobRequest(name=parent.name, step=30))
        events = await suite.finished(client, fork.name)
        fork = await client.trainer.GetJob(pb.GetJobRequest(name=fork.name))
        assert fork.state == pb.JOB_STATE_SUCCEEDED, fork.error
        assert (fork.parent_job, fork.parent_step) == (parent.name, 30)
        assert [event.metric.step for event in events if event.HasField("metric")] == list(range(31, 41))
        states = [
            CheckpointFolder(directory_of(suite, name).checkpoints).read(40).tensors
            for name in (parent.name, fork.name)
        ]
        assert arrays_equal(*states)

        changed = pb.ForkJobRequest(name=parent.name, step=30, train=pb.TrainSpec(steps=50))
        changed.update_mask.paths.append("steps")
        longer = await client.trainer.ForkJob(changed)
        events = await suite.finished(client, longer.name)
        assert [event.metric.step for event in events if event.HasField("metric")] == list(range(31, 51))
        compared = await client.trainer.CompareJobs(pb.CompareJobsRequest(names=[parent.name, longer.name]))
        assert "train.steps" in {one.field for one in compared.differences}
        diagnosis = await client.trainer.DiagnoseJob(pb.DiagnoseJobRequest(name=parent.name))
        assert diagnosis.step == 40
        figures = await client.trainer.GetTrainingStatistics(pb.GetTrainingStatisticsRequest())
        assert figures.jobs_by_state["JOB_STATE_SUCCEEDED"] == 3


async def test_a_live_learning_rate_is_applied_at_a_step_and_repeated_there_after_a_loss(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        spec = suite.spec(steps=100_000, evaluation_interval_steps=0)
        spec.checkpoints.interval_steps = 0
        job = await suite.create(client, spec)
        await suite.reached(client, job.name, lambda event: event.metric.step == 20)
        await client.trainer.CheckpointJob(pb.CheckpointJobRequest(name=job.name))
        await client.trainer.UpdateJob(scaled(job.name, 0.5))
        seen = await suite.reached(client, job.name, lambda event: event.command_applied.command.HasField("live"))
        at = seen[-1].command_applied.step
        seen = await suite.reached(client, job.name, lambda event: event.metric.step == at + 30)
        rates = {event.metric.step: event.metric.learning_rate for event in seen if event.HasField("metric")}
        assert rates[at + 1] == pytest.approx(rates[at] / 2, rel=1e-3)
        os.kill(directory_of(suite, job.name).worker_pid(), signal.SIGKILL)
        seen = await suite.reached(client, job.name, lambda event: event.metric.step == at + 300)
        assert [event.attempt_start.step for event in seen if event.HasField("attempt_start")][1] < at
        assert not [event.log.message for event in seen if "does not compute" in event.log.message]
        with pytest.raises(InvalidArgument, match="learning_rate_scale"):
            await client.trainer.UpdateJob(scaled(job.name, 0))
        await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))
        with pytest.raises(FailedPrecondition):
            await client.trainer.UpdateJob(scaled(job.name, 2))


async def test_what_people_decide_about_a_job_changes_by_mask_and_etag_and_is_kept(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        blocker = await suite.create(client, suite.spec(steps=100_000, evaluation_interval_steps=0))
        job = await suite.create(client, suite.spec(), labels={"team": "a"}, display_name="first")
        change = pb.Job(name=job.name, etag=job.etag, labels={"team": "b"}, display_name="ignored")
        request = pb.UpdateJobRequest(job=change)
        request.update_mask.paths.append("labels")
        updated = await client.trainer.UpdateJob(request)
        assert dict(updated.labels) == {"team": "b"}
        assert updated.display_name == "first"
        with pytest.raises(Aborted):
            await client.trainer.UpdateJob(request)
        request.update_mask.paths[:] = ["state"]
        with pytest.raises(InvalidArgument, match="labels"):
            await client.trainer.UpdateJob(request)
    async with suite.trainer() as client:
        kept = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))
        assert dict(kept.labels) == {"team": "b"}
        for name in (job.name, blocker.name):
            await client.trainer.CancelJob(pb.CancelJobRequest(name=name))
