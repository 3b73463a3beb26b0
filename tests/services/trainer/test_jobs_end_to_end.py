"""A job from its acceptance to a registered, proven version, through real processes."""

import pytest

from octavo.v1 import registry_pb2
from octavo.v1 import trainer_pb2 as pb

pytestmark = pytest.mark.slow


async def is_found_again(suite, client, job):
    """By its configuration, as the best so far, beside another, and in the statistics."""
    listed = await client.trainer.ListJobs(pb.ListJobsRequest(filter=f"configuration_id = {job.configuration_id}"))
    assert [one.name for one in listed.jobs] == [job.name]
    ranked = await client.trainer.GetBestConfiguration(pb.GetBestConfigurationRequest(dataset="datasets/tiny"))
    assert (list(ranked.best.jobs), ranked.dataset) == ([job.name], "datasets/tiny/versions/1")
    assert ranked.best.mean == job.best_evaluation.bits_per_byte
    other = await suite.create(client, suite.spec(steps=100_000, seed=2))
    compared = await client.trainer.CompareJobs(pb.CompareJobsRequest(names=[job.name, other.name]))
    assert compared.best_job == job.name
    assert len(compared.jobs[0].training_curve) == 40
    await client.trainer.CancelJob(pb.CancelJobRequest(name=other.name))
    figures = await client.trainer.GetTrainingStatistics(pb.GetTrainingStatisticsRequest())
    assert figures.models["models/poet"].succeeded_jobs == 1
    assert figures.throughput[0].tokens >= job.progress.tokens


async def test_a_train_job_ends_in_a_proven_version_with_alias_and_deployment(suite):
    async with suite.trainer() as client:
        await suite.add_dataset(client)
        spec = suite.spec(aliases=["champion"], deployment="deployments/poet")
        job = await suite.create(client, spec)
        events = await suite.finished(client, job.name)
        job = await client.trainer.GetJob(pb.GetJobRequest(name=job.name))

        assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert job.last_sequence == len(events)
        assert [event.metric.step for event in events if event.HasField("metric")] == list(range(1, 41))
        assert [event.evaluation.step for event in events if event.HasField("evaluation")] == [20, 40]
        assert len([event for event in events if event.HasField("sample")]) == 2
        assert list(job.outputs) == ["models/poet/versions/1", "deployments/poet"]
        assert job.progress.fraction == 1.0
        assert job.latest_evaluation.validation_loss < job.latest_metric.loss + 2
        assert job.plan.train.steps == 40

        await is_found_again(suite, client, job)
        version = await client.registry.ResolveVersion(
            registry_pb2.ResolveVersionRequest(reference="models/poet@champion")
        )
        assert version.name == "models/poet/versions/1"
        assert {"model.onnx", "model.safetensors", "conformance.json", "README.md", "lineage.json"} <= {
            file.path for file in version.files
        }
        assert version.lineage.job == job.name
        assert version.parity["largest_difference"] <= version.parity["tolerance"]
