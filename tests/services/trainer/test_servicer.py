"""The trainer over real sockets: what it refuses and how, what it repeats, and what it streams."""

import asyncio
import statistics
import time
import uuid

import pytest

from octavo.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
)
from octavo.v1 import errors_pb2
from octavo.v1 import trainer_pb2 as pb


async def test_a_plan_says_what_a_spec_comes_to_before_anything_runs(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        asked = pb.Job(train=pb.TrainSpec(dataset="datasets/tiny", model="models/poet"))
        plan = (await client.trainer.PlanJob(pb.PlanJobRequest(job=asked))).plan
        assert plan.train.dataset == "datasets/tiny/versions/1"
        assert plan.parameter_count > 0
        assert plan.memory_bytes > 0
        assert plan.train.tokenizer.kind == pb.TOKENIZER_KIND_CHARACTER
        assert (await client.trainer.ListJobs(pb.ListJobsRequest())).total_size == 0


async def test_what_cannot_be_planned_is_refused_by_field_and_nothing_is_made(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        for changes, field in (
            ({"architecture": pb.Architecture(heads=5, width=32)}, "job.train.architecture.heads"),
            ({"architecture": pb.Architecture(context_length=10**6)}, "job.train.architecture.context_length"),
            ({"dropout": 1.5}, "job.train.dropout"),
        ):
            spec = pb.TrainSpec(dataset="datasets/tiny", model="models/poet", **changes)
            with pytest.raises(InvalidArgument) as refusal:
                await suite.create(client, spec)
            assert field in refusal.value.violations
        with pytest.raises(NotFound) as missing:
            await suite.create(client, pb.TrainSpec(dataset="datasets/none", model="models/poet"))
        assert missing.value.reason == errors_pb2.REASON_DATASET_NOT_FOUND
        assert (await client.trainer.ListJobs(pb.ListJobsRequest())).total_size == 0


async def test_everything_that_is_wrong_is_said_at_once_the_names_among_it(suite):
    async with suite.trainer() as client:
        spec = pb.TrainSpec(
            dataset="datasets/none", model="poet", dropout=2.0, architecture=pb.Architecture(heads=3), device="cuda:7"
        )
        with pytest.raises(InvalidArgument) as refusal:
            await suite.create(client, spec, priority=500)
        assert set(refusal.value.violations) == {
            "job.priority",
            "job.train.dataset",
            "job.train.model",
            "job.train.dropout",
            "job.train.architecture.heads",
            "job.train.device",
        }
        with pytest.raises(InvalidArgument) as refusal:
            await client.trainer.PlanJob(pb.PlanJobRequest(job=pb.Job(display_name="nothing to do")))
        assert set(refusal.value.violations) == {"job.train"}


async def test_a_plan_has_its_price_and_an_identifier_that_comes_back_with_it(suite):
    async with suite.trainer(price_per_hour=36.0) as client:
        await suite.add_dataset(client)
        asked = pb.Job(train=pb.TrainSpec(dataset="datasets/tiny", model="models/poet"))
        plan = (await client.trainer.PlanJob(pb.PlanJobRequest(job=asked))).plan
        assert plan.estimated_cost == pytest.approx(plan.estimated_duration.ToNanoseconds() / 1e9 / 100)
        assert sum(one.duration.ToNanoseconds() for one in plan.phases) == pytest.approx(
            plan.estimated_duration.ToNanoseconds(), abs=10
        )
        again = pb.Job(train=plan.train)
        again.train.model, again.train.seed, again.train.price_per_hour = "models/other", 5, 72.0
        other = (await client.trainer.PlanJob(pb.PlanJobRequest(job=again))).plan
        assert other.configuration_id == plan.configuration_id
        assert other.estimated_cost == pytest.approx(2 * plan.estimated_cost)


async def test_names_that_are_none_are_refused_and_unknown_ones_not_found(suite):
    async with suite.trainer() as client:
        for name in ("", "jobs", "jobs/", "jobs/../etc", "jobs/A", "models/poet", "jobs/" + "x" * 64):
            with pytest.raises(InvalidArgument):
                await client.trainer.GetJob(pb.GetJobRequest(name=name))
        for call, request in (
            (client.trainer.GetJob, pb.GetJobRequest),
            (client.trainer.CancelJob, pb.CancelJobRequest),
            (client.trainer.PauseJob, pb.PauseJobRequest),
            (client.trainer.ResumeJob, pb.ResumeJobRequest),
            (client.trainer.CheckpointJob, pb.CheckpointJobRequest),
            (client.trainer.DeleteJob, pb.DeleteJobRequest),
        ):
            with pytest.raises(NotFound) as missing:
                await call(request(name="jobs/none"))
            assert missing.value.reason == errors_pb2.REASON_JOB_NOT_FOUND
        with pytest.raises(NotFound):
            await anext(aiter(client.trainer.WatchJob(pb.WatchJobRequest(name="jobs/none"))))


async def test_creation_is_repeated_by_its_request_id_and_made_once(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        spec, request_id = suite.spec(steps=100_000), str(uuid.uuid4())
        dry = await suite.create(client, spec, validate_only=True)
        assert dry.state == pb.JOB_STATE_UNSPECIFIED
        made = await asyncio.gather(*(suite.create(client, spec, request_id=request_id) for _ in range(5)))
        assert len({job.name for job in made}) == 1
        assert (await client.trainer.ListJobs(pb.ListJobsRequest())).total_size == 1
        with pytest.raises(Aborted) as reused:
            await suite.create(client, suite.spec(steps=5), request_id=request_id)
        assert reused.value.reason == errors_pb2.REASON_REQUEST_ID_REUSED
        with pytest.raises(AlreadyExists):
            await suite.create(client, spec, job_id=made[0].name.removeprefix("jobs/"))
        await client.trainer.CancelJob(pb.CancelJobRequest(name=made[0].name))


async def test_events_arrive_soon_after_they_are_written_and_a_watch_beyond_the_end_is_refused(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        job = await suite.create(client, suite.spec(steps=100_000, evaluation_interval_steps=0))
        delays_s = []
        async for event in client.watch_job(job.name):
            if event.HasField("metric"):
                delays_s.append(time.time() - event.create_time.ToNanoseconds() / 1e9)
            if event.metric.step == 150:
                break
        assert statistics.median(delays_s) < 0.25
        with pytest.raises(OutOfRange, match="watch again from 0"):
            await anext(aiter(client.trainer.WatchJob(pb.WatchJobRequest(name=job.name, after_sequence=10**9))))
        with pytest.raises(InvalidArgument):
            await anext(aiter(client.trainer.WatchJob(pb.WatchJobRequest(name=job.name, after_sequence=-1))))
        with pytest.raises(FailedPrecondition, match="PAUSED"):
            await client.trainer.ResumeJob(pb.ResumeJobRequest(name=job.name))
        await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))


async def test_a_prompt_the_vocabulary_lacks_fails_the_job_with_its_symbols(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        job = await suite.create(client, suite.spec(sample=pb.SampleSpec(prompt="Ω")))
        events = await suite.finished(client, job.name)
        assert events[-1].state_change.state == pb.JOB_STATE_FAILED
        job = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))
        assert "Ω" in job.error.message
        assert "Traceback" not in str(job)
