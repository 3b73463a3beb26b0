"""Jobs that learn rows: what is left out is said, what is learnt ends, and a dataset may be deleted under way."""

import os
import signal

import pytest

from octavo.errors import InvalidArgument
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.job_directory import JobDirectory
from tests.services.trainer.sums import ROWS, add_rows

SUMS = [*ROWS[:60], {"input": "none", "output": ""}]


async def delete(client, name):
    await client.datasets.DeleteDataset(datasets_pb2.DeleteDatasetRequest(name=name))


@pytest.mark.slow
async def test_a_dataset_deleted_ends_the_job_that_waits_for_it_and_not_the_one_that_has_begun(suite):
    async with suite.trainer() as client:
        await add_rows(suite, client, "sums", SUMS)
        await add_rows(suite, client, "others", SUMS)
        begun = await suite.create(client, suite.spec(dataset="datasets/sums", steps=60))
        waiting = await suite.create(client, suite.spec(dataset="datasets/others"))
        seen = await suite.reached(client, begun.name, lambda event: event.checkpoint.step == 10)
        await delete(client, "datasets/sums")
        await delete(client, "datasets/others")
        os.kill(JobDirectory(suite.directory / "trainer" / begun.name).worker_pid(), signal.SIGKILL)
        events = seen + await suite.finished(client, begun.name, seen[-1].sequence)
        assert events[-1].state_change.state == pb.JOB_STATE_SUCCEEDED, events[-1]
        lines = [event.log.message for event in events if event.HasField("log")]
        assert "1 rows are left out: the answer is empty" in lines
        assert lines.count("1 rows are left out: the answer is empty") == 1
        job = await client.trainer.GetJob(pb.GetJobRequest(name=begun.name))
        assert job.attempt_count == 2
        assert job.latest_evaluation.rows > 0
        assert 0 <= job.latest_evaluation.exact_match <= 1
        assert job.plan.train.data.template == "{input}\n"
        end = (await suite.finished(client, waiting.name))[-1].state_change
        assert end.state == pb.JOB_STATE_FAILED
        assert "datasets/others/versions/1 was deleted before the job began" in end.message
        assert Reason.Name(Reason.REASON_DATASET_NOT_FOUND).removeprefix("REASON_") in str(end.error)


async def test_rows_without_the_needed_columns_are_refused_before_anything_runs(suite):
    async with suite.trainer() as client:
        await add_rows(suite, client, "questions", [{"question": "a", "answer": "b"}] * 3)
        with pytest.raises(InvalidArgument) as caught:
            await suite.create(client, suite.spec(dataset="datasets/questions"))
        assert "name the one to learn: 'question', 'answer'" in caught.value.violations["job.train.data.answer_column"]
        data = pb.DataSpec(input_column="question", answer_column="answer")
        job = pb.Job(train=suite.spec(dataset="datasets/questions", data=data))
        plan = (await client.trainer.PlanJob(pb.PlanJobRequest(job=job))).plan
        assert plan.train.data.template == "{input}\n"
        await suite.add_dataset(client)
        with pytest.raises(InvalidArgument, match="plain text"):
            await suite.create(client, suite.spec(data=data))
