"""A job from its acceptance to a registered, proven version, through real processes."""

import pytest

from octavo.v1 import registry_pb2
from octavo.v1 import trainer_pb2 as pb

pytestmark = pytest.mark.slow


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

        version = await client.registry.ResolveVersion(
            registry_pb2.ResolveVersionRequest(reference="models/poet@champion")
        )
        assert version.name == "models/poet/versions/1"
        assert {"model.onnx", "model.safetensors", "conformance.json", "README.md", "lineage.json"} <= {
            file.path for file in version.files
        }
        assert version.lineage.job == job.name
        assert version.parity["largest_difference"] <= version.parity["tolerance"]
