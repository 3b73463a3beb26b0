"""What is accepted as a job, and how everything else is refused: all faults at once, each with its field."""

import uuid
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import InvalidArgument, Unimplemented
from octavo.v1 import trainer_pb2 as pb
from services.trainer.acceptance import accepted_job, job_faults, request_digest


def job(**changes):
    spec = pb.TrainSpec(dataset="datasets/tiny", model="models/poet")
    spec.MergeFrom(pb.TrainSpec(**changes))
    return pb.Job(train=spec)


def check_job(asked, job_id, request_id):
    wrong = job_faults(asked, job_id, request_id)
    if wrong:
        raise InvalidArgument.fields(wrong)


def test_a_dataset_and_a_model_are_enough():
    check_job(job(), "", "")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"dataset": "tiny"}, "job.train.dataset"),
        ({"dataset": "datasets/tiny/versions/0"}, "job.train.dataset"),
        ({"model": "models/../x"}, "job.train.model"),
        ({"model": "models/poet/versions/1"}, "job.train.model"),
        ({"deployment": "deployments/"}, "job.train.deployment"),
        ({"dataset": "datasets/tiny\n"}, "job.train.dataset"),
        ({"dataset": "datasets/tiny/versions/١"}, "job.train.dataset"),
        ({"model": "models/poet\n"}, "job.train.model"),
        ({"deployment": "deployments/poet\n"}, "job.train.deployment"),
        ({"aliases": ["good\n"]}, "job.train.aliases[0]"),
        ({"aliases": ["latest"]}, "job.train.aliases[0]"),
        ({"aliases": ["good", "v3"]}, "job.train.aliases[1]"),
        ({"aliases": [f"a{number}" for number in range(17)]}, "job.train.aliases"),
        ({"sample": pb.SampleSpec(prompt="x" * 10_001)}, "job.train.sample.prompt"),
        ({"sample": pb.SampleSpec(prompt="a", prompts=["b"])}, "job.train.sample.prompt"),
        ({"sample": pb.SampleSpec(prompts=["b", ""])}, "job.train.sample.prompts[1]"),
        ({"sample": pb.SampleSpec(prompts=["b", "b"])}, "job.train.sample.prompts[1]"),
        ({"early_stopping": pb.EarlyStopping(patience=0)}, "job.train.early_stopping.patience"),
        ({"early_stopping": pb.EarlyStopping(patience=2, min_delta=-1)}, "job.train.early_stopping.min_delta"),
        ({"time_budget": {"seconds": 0}}, "job.train.time_budget"),
        ({"time_budget": {"seconds": 10**9}}, "job.train.time_budget"),
        ({"steps": 0}, "job.train.steps"),
        ({"steps": -5}, "job.train.steps"),
        ({"export_precisions": ["fp32", "int8", "q4"]}, "job.train.export_precisions[2]"),
        ({"checkpoints": pb.CheckpointPolicy(keep_latest=1)}, "job.train.checkpoints.keep_latest"),
    ],
)
def test_a_wrong_field_is_named_with_what_would_be_right(changes, field):
    with pytest.raises(InvalidArgument) as refusal:
        check_job(job(**changes), "", "")
    assert list(refusal.value.violations) == [field]


def test_all_faults_are_told_at_once():
    wrong = pb.Job(display_name="x" * 201, priority=101, labels={"Bad Key": "v"}, train=pb.TrainSpec(model="poet"))
    with pytest.raises(InvalidArgument) as refusal:
        check_job(wrong, "Not-An-Id", "not-a-uuid")
    assert set(refusal.value.violations) == {
        "job.display_name",
        "job.priority",
        "job.labels['Bad Key']",
        "job_id",
        "request_id",
        "job.train.dataset",
        "job.train.model",
    }


def test_an_id_and_a_label_end_where_they_end():
    with pytest.raises(InvalidArgument) as refusal:
        check_job(pb.Job(labels={"team\n": "a"}, train=job().train), "mine\n", "")
    assert set(refusal.value.violations) == {"job_id", "job.labels['team\\n']"}


def test_a_job_without_a_spec_is_refused():
    with pytest.raises(InvalidArgument, match="one spec"):
        check_job(pb.Job(), "", "")


@pytest.mark.parametrize("kind", ["evaluate", "tune", "synthesize", "publish"])
def test_kinds_that_do_not_run_yet_are_refused_with_those_that_do(kind):
    asked = pb.Job()
    getattr(asked, kind).SetInParent()
    with pytest.raises(Unimplemented, match="`train`, `export`, `replay` can"):
        check_job(asked, "", "")


def export(**changes):
    spec = pb.ExportSpec(version="models/poet@champion")
    spec.MergeFrom(pb.ExportSpec(**({"precisions": ["int8"]} | changes)))
    return pb.Job(export=spec)


def test_a_version_and_a_precision_are_enough_for_an_export():
    check_job(export(), "", "")
    check_job(export(version="models/poet"), "", "")
    check_job(export(version="models/poet/versions/3", precisions=["int8", "int8_weights", "int4", "fp16"]), "", "")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"version": "poet"}, "job.export.version"),
        ({"version": "models/poet/versions/0"}, "job.export.version"),
        ({"version": "models/poet@champion\n"}, "job.export.version"),
        ({"precisions": []}, "job.export.precisions"),
        ({"precisions": ["int8", "int3"]}, "job.export.precisions[1]"),
        ({"precisions": ["fp32"]}, "job.export.precisions[0]"),
        ({"precisions": ["int8", "int8"]}, "job.export.precisions[1]"),
        ({"dataset": "tiny"}, "job.export.dataset"),
        ({"aliases": ["latest"]}, "job.export.aliases[0]"),
        ({"deployment": "poet"}, "job.export.deployment"),
        ({"max_perplexity_increase": -0.1}, "job.export.max_perplexity_increase"),
        ({"max_perplexity_increase": float("nan")}, "job.export.max_perplexity_increase"),
        ({"threads": 0}, "job.export.threads"),
    ],
)
def test_a_wrong_field_of_an_export_is_named_with_what_would_be_right(changes, field):
    with pytest.raises(InvalidArgument) as refusal:
        check_job(export(**changes), "", "")
    assert list(refusal.value.violations) == [field]


def test_an_export_is_taken_over_as_its_creator_decided():
    made = accepted_job(pb.CreateJobRequest(job=export(max_perplexity_increase=0.02)))
    assert made.WhichOneof("spec") == "export"
    assert made.export.max_perplexity_increase == 0.02
    assert not made.HasField("plan")


@pytest.mark.parametrize(
    "changes",
    [
        {"base_version": "models/poet@champion"},
        {"lora": pb.LoraSpec(rank=8), "base_version": "models/poet@champion"},
    ],
)
def test_parts_of_a_spec_that_cannot_be_honoured_are_refused_rather_than_ignored(changes):
    with pytest.raises(Unimplemented, match="base_version"):
        check_job(job(**changes), "", "")


@settings(deadline=None)
@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=300), st.integers(-(2**31), 2**31 - 1))
def test_whatever_is_sent_is_accepted_or_refused_as_an_argument(name, request_id, display_name, priority):
    asked = job(dataset=name, model=f"models/{name}")
    asked.display_name, asked.priority = display_name, priority
    with suppress(InvalidArgument):
        check_job(asked, name, request_id)


def test_output_fields_are_not_taken_over_and_do_not_make_another_request():
    request = pb.CreateJobRequest(job=job(), job_id="mine", request_id=str(uuid.uuid4()))
    forged = pb.CreateJobRequest()
    forged.CopyFrom(request)
    forged.job.state = pb.JOB_STATE_SUCCEEDED
    forged.job.outputs.append("models/poet/versions/1")
    made = accepted_job(forged)
    assert made.name == "jobs/mine"
    assert made.state == pb.JOB_STATE_UNSPECIFIED
    assert not made.outputs
    assert request_digest(forged) == request_digest(request)
    forged.job.train.steps = 3
    assert request_digest(forged) != request_digest(request)


def test_ids_are_made_up_where_none_is_given():
    names = {accepted_job(pb.CreateJobRequest(job=job())).name for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("jobs/j-") for name in names)
