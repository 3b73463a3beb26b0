"""An export job from its acceptance to a registered version in more precisions, through real processes."""

import os
import signal

import numpy as np
import pytest

from octavo.errors import FailedPrecondition, InvalidArgument, NotFound, from_status
from octavo.formats.bundle import Bundle, graph_file
from octavo.formats.conformance import Conformance
from octavo.formats.lineage import Lineage
from octavo.v1 import datasets_pb2, deployments_pb2, registry_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.graph_session import GraphSession
from services.trainer.job_directory import JobDirectory

pytestmark = pytest.mark.slow


async def trained(suite, client, **changes):
    """A version to export."""
    await suite.add_dataset(client)
    job = await suite.create(client, suite.spec(**changes))
    await suite.finished(client, job.name)
    return (await client.trainer.GetJob(pb.GetJobRequest(name=job.name))).outputs[0]


async def exported(client, **spec):
    """An export job at its end, with its events."""
    created = await client.trainer.CreateJob(pb.CreateJobRequest(job=pb.Job(export=pb.ExportSpec(threads=1, **spec))))
    events = [event async for event in client.watch_job(created.name)]
    return await client.trainer.GetJob(pb.GetJobRequest(name=created.name)), events


async def version_of(client, name):
    return await client.registry.GetVersion(registry_pb2.GetVersionRequest(name=name))


async def fetched(client, version, directory):
    for file in version.files:
        await client.download(file.blob, directory / file.path)
    return Bundle.open(directory)


def completes(bundle, precision):
    """How conformance asks: a prompt and a count in, ids and log-probabilities out."""
    session = GraphSession(bundle.directory / graph_file(precision), bundle.architecture)

    def complete(prompt, count):
        ids, logits = session.complete(np.array(prompt, np.int64), count)
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return ids.tolist(), scores[np.arange(count), ids].tolist()

    return complete


async def test_an_export_is_a_new_version_that_holds_the_old_one_and_answers_in_each_precision(suite, tmp_path):
    async with suite.trainer() as client:
        source = await version_of(client, await trained(suite, client))
        job, events = await exported(
            client,
            version="models/poet/versions/1",
            precisions=["int8", "int4", "int8_weights"],
            aliases=["small"],
            deployment="deployments/poet",
            max_perplexity_increase=0.05,
        )
        assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
        assert list(job.outputs) == ["models/poet/versions/2", "deployments/poet"]
        assert job.plan.export.dataset == "datasets/tiny/versions/1"
        fractions = [event.progress.fraction for event in events if event.HasField("progress")]
        assert fractions == sorted(fractions)
        version = await version_of(client, "models/poet/versions/2")
        blobs = {file.path: file.blob for file in version.files}
        remade = {"conformance.json", "lineage.json", "README.md"}
        assert all(blobs[file.path] == file.blob for file in source.files if file.path not in remade)
        assert {"model.int8.onnx", "model.int8.onnx.data", "model.int4.onnx"} <= blobs.keys()
        assert version.lineage.parent_version == "models/poet/versions/1"
        assert version.lineage.job == job.name
        assert [one.dataset for one in version.lineage.datasets] == ["datasets/tiny/versions/1"]
        assert dict(version.metrics).items() >= dict(source.metrics).items()
        assert version.metrics["int8_perplexity_increase"] <= 0.05
        assert version.parity["precisions"]["int8"]["held_out_tokens"] > 100
        bundle = await fetched(client, version, tmp_path)
        assert Lineage.read(tmp_path).parent_version == "models/poet/versions/1"
        assert "int8" in (tmp_path / "README.md").read_text()
        conformance = Conformance.read(tmp_path)
        for precision in ("fp32", "int8", "int4", "int8_weights"):
            conformance.verify(precision, completes(bundle, precision))
        request = deployments_pb2.GetDeploymentRequest(name="deployments/poet")
        target = (await client.deployments.GetDeployment(request)).targets[0]
        assert target.precision == deployments_pb2.PRECISION_INT8


async def test_a_precision_that_loses_too_much_ends_the_job_with_its_figures_and_registers_nothing(suite):
    async with suite.trainer() as client:
        await trained(suite, client)
        job, _ = await exported(
            client, version="models/poet/versions/1", precisions=["int8", "int4"], max_perplexity_increase=0.0
        )
        assert job.state == pb.JOB_STATE_FAILED
        error = from_status(job.error)
        assert isinstance(error, FailedPrecondition)
        assert error.reason_name == "QUALITY_LOST"
        assert "perplexity" in error.message
        assert "max_perplexity_increase" in error.message
        versions = await client.registry.ListVersions(registry_pb2.ListVersionsRequest(parent="models/poet"))
        assert versions.total_size == 1


async def test_a_worker_lost_in_the_middle_of_an_export_registers_one_version(suite):
    async with suite.trainer() as client:
        await trained(suite, client)
        spec = pb.ExportSpec(
            version="models/poet/versions/1", precisions=["int8"], threads=1, max_perplexity_increase=0.05
        )
        created = await client.trainer.CreateJob(pb.CreateJobRequest(job=pb.Job(export=spec)))
        await suite.reached(client, created.name, lambda event: event.progress.phase == pb.JOB_PHASE_EXPORT)
        directory = JobDirectory(suite.directory / "trainer" / created.name)
        os.kill(directory.worker_pid(), signal.SIGKILL)
        await suite.finished(client, created.name)
        job = await client.trainer.GetJob(pb.GetJobRequest(name=created.name))
        assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
        assert job.attempt_count == 2
        assert list(job.outputs) == ["models/poet/versions/2"]


async def test_training_makes_the_precisions_it_is_asked_for_in_the_same_version(suite, tmp_path):
    async with suite.trainer() as client:
        version = await version_of(client, await trained(suite, client, export_precisions=["fp32", "int8"]))
        bundle = await fetched(client, version, tmp_path)
        assert version.metrics["int8_perplexity_increase"] <= 0.01
        Conformance.read(tmp_path).verify("int8", completes(bundle, "int8"))


async def test_what_an_export_comes_to_is_said_and_refused_before_it_is_accepted(suite):
    async with suite.trainer() as client:
        await trained(suite, client)
        await suite.add_dataset(client, text="naïve façades\n" * 200, name="accents")
        rows = await client.upload(b'{"a": "b"}\n' * 9)
        dataset = datasets_pb2.Dataset(blob=rows.name, format=datasets_pb2.DATASET_FORMAT_JSONL)
        await client.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(dataset=dataset, dataset_id="rows"))

        def plan(**spec):
            asked = pb.ExportSpec(**({"version": "models/poet/versions/1", "precisions": ["int8"]} | spec))
            return client.trainer.PlanJob(pb.PlanJobRequest(job=pb.Job(export=asked)))

        good = (await plan(precisions=["int8", "bf16"])).plan
        assert good.export.version == "models/poet/versions/1"
        assert good.export.max_perplexity_increase == 0.01
        assert good.parameter_count > 0
        assert good.estimated_duration.ToSeconds() > 0
        assert [warning.field for warning in good.warnings] == ["export.precisions[1]"]
        with pytest.raises(NotFound):
            await plan(version="models/poet/versions/9")
        with pytest.raises(NotFound):
            await plan(dataset="datasets/none")
        with pytest.raises(InvalidArgument, match="holds rows") as refusal:
            await plan(dataset="datasets/rows")
        assert list(refusal.value.violations) == ["job.export.dataset"]
        with pytest.raises(InvalidArgument, match="does not fit the tokenizer") as refusal:
            await plan(dataset="datasets/accents")
        assert list(refusal.value.violations) == ["job.export.dataset"]
        bare = await client.upload(b"{}")
        version = registry_pb2.Version(files=[registry_pb2.File(path="config.json", blob=bare.name, size_bytes=2)])
        await client.registry.CreateVersion(registry_pb2.CreateVersionRequest(parent="models/poet", version=version))
        with pytest.raises(InvalidArgument, match=r"has no model\.onnx") as refusal:
            await plan(version="models/poet/versions/2")
        assert list(refusal.value.violations) == ["job.export.version"]
        checked = pb.CreateJobRequest(
            job=pb.Job(export=pb.ExportSpec(version="models/poet/versions/1", precisions=["int4"])), validate_only=True
        )
        assert (await client.trainer.CreateJob(checked)).plan.export.precisions == ["int4"]
        jobs = await client.trainer.ListJobs(pb.ListJobsRequest(filter="kind = export"))
        assert not jobs.jobs


async def test_an_export_has_no_checkpoints_and_cannot_be_forked(suite):
    async with suite.trainer(max_running_jobs=1) as client:
        await trained(suite, client)
        job, _ = await exported(
            client, version="models/poet/versions/1", precisions=["int8"], max_perplexity_increase=0.05
        )
        with pytest.raises(FailedPrecondition, match="kind export"):
            await client.trainer.CheckpointJob(pb.CheckpointJobRequest(name=job.name))
        with pytest.raises(FailedPrecondition, match="kind export"):
            await client.trainer.ForkJob(pb.ForkJobRequest(name=job.name))
