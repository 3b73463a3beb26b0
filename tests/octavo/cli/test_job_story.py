"""What the events of a job add up to."""

import io
import math

import pytest
from google.rpc import status_pb2
from rich.console import Console

from octavo.cli import follow
from octavo.cli.job_lines import JobLines
from octavo.cli.job_story import JobStory
from octavo.cli.job_view import JobView
from octavo.errors import OctavoError
from octavo.v1 import trainer_pb2 as pb

JOB = pb.Job(
    name="jobs/j-1",
    state=pb.JOB_STATE_QUEUED,
    train=pb.TrainSpec(dataset="datasets/tiny", model="models/poet"),
    plan=pb.Plan(total_steps=100),
)


def metric(step, loss=2.0):
    return pb.JobEvent(sequence=step, metric=pb.TrainingMetric(step=step, loss=loss, tokens_per_second=1000))


def told(*events):
    story = JobStory.of(JOB)
    for event in events:
        story.tell(event)
    return story


def drawn(story):
    console = Console(width=90, file=io.StringIO())
    console.print(JobView(story))
    return console.file.getvalue()


def test_a_story_begins_with_what_the_job_says():
    story = told()
    assert (story.subject, story.total_steps, story.step) == ("train poet on tiny", 100, 0)
    assert math.isnan(story.loss)


def test_the_loss_is_averaged_without_a_bias_to_zero():
    assert told(metric(1, 3.0)).loss == pytest.approx(3.0)
    assert 2.0 < told(metric(1, 3.0), metric(2, 2.0)).loss < 3.0


def test_a_new_attempt_takes_back_what_it_will_do_again():
    start = pb.AttemptStart(attempt=2, step=2)
    story = told(metric(1), metric(2), metric(3), pb.JobEvent(sequence=4, attempt_start=start))
    assert [step for step, _ in story.losses] == [1, 2]
    assert "goes on from step 2" in story.notes[0]


def test_points_are_thinned_out_and_never_too_many():
    story = told(*(metric(step) for step in range(1, 10_001)))
    assert len(story.losses) <= 4096
    assert story.losses[0][0] == 1


def test_every_kind_of_event_can_be_told_and_shown():
    for field in pb.JobEvent.DESCRIPTOR.oneofs_by_name["event"].fields:
        event = pb.JobEvent(sequence=1, **{field.name: {}})
        story = told(event)
        JobLines(story).tell(event)
        assert "train poet on tiny" in drawn(story)


def test_the_view_shows_bar_figures_curve_and_sample():
    story = told(
        pb.JobEvent(sequence=1, state_change=pb.StateChange(state=pb.JOB_STATE_RUNNING)),
        *(metric(step, 4.0 - step / 50) for step in range(1, 51)),
        pb.JobEvent(
            sequence=60, progress=pb.JobProgress(phase=pb.JOB_PHASE_TRAIN, step=50, total_steps=100, fraction=0.5)
        ),
        pb.JobEvent(sequence=61, evaluation=pb.Evaluation(step=50, validation_loss=3.25, bits_per_byte=2.5)),
        pb.JobEvent(sequence=62, sample=pb.SampleText(step=50, prompt="To be", text=" or not\nto be")),
    )
    text = drawn(story)
    for words in ("50%", "step 50/100", "validation 3.250", "2.50 bits/byte", "To be or not", "training", "┤"):
        assert words in text


def test_a_sample_cannot_speak_markup_to_the_terminal():
    story = told(pb.JobEvent(sequence=1, sample=pb.SampleText(step=1, text="[bold]x[/bold] [/]")))
    assert "[bold]x[/bold] [/]" in drawn(story)


def test_a_sample_cannot_command_the_terminal():
    story = told(pb.JobEvent(sequence=1, sample=pb.SampleText(step=1, text="a\x1b]0;title\x07b\x9bc")))
    assert not {"\x1b", "\x07", "\x9b"} & set(drawn(story))


def test_a_failed_job_ends_as_its_error():
    change = pb.StateChange(
        state=pb.JOB_STATE_FAILED, error=status_pb2.Status(code=9, message="the loss is not a number")
    )
    with pytest.raises(OctavoError, match="not a number"):
        follow.conclude(told(pb.JobEvent(sequence=1, state_change=change)))


def test_only_success_is_exit_code_0():
    for state, code in ((pb.JOB_STATE_SUCCEEDED, 0), (pb.JOB_STATE_CANCELLED, 1)):
        assert follow.conclude(told(pb.JobEvent(sequence=1, state_change=pb.StateChange(state=state)))) == code


def test_a_recovery_takes_back_the_curve_that_no_longer_holds():
    story = told(
        metric(1),
        metric(2),
        metric(3, 9.0),
        pb.JobEvent(sequence=4, recovery=pb.Recovery(step=1, failed_step=4)),
        pb.JobEvent(sequence=5, metric=pb.TrainingMetric(step=2, loss=1.9)),
    )
    assert story.losses == [(1, 2.0), (2, 1.9)]


def test_what_model_and_machine_do_is_drawn():
    gpu = pb.GpuUsage(index=0, utilization=0.97, memory_used_bytes=3 << 30, temperature_celsius=61, power_watts=450)
    usage = pb.ResourceUsage(process_cpu_cores=1.9, process_memory_bytes=512 << 20, gpus=[gpu])
    figures = pb.TrainingMetric(step=50, loss=2.0, gradient_norm=0.42, update_ratio=0.012, flops_utilization=0.38)
    text = drawn(told(pb.JobEvent(sequence=1, metric=figures), pb.JobEvent(sequence=2, resource_usage=usage)))
    for words in ("gradient 0.42", "update 1.20%", "38% of peak FLOPS", "cpu 1.9 cores", "gpu 0 97%", "61 °C", "450 W"):
        assert words in " ".join(text.split())
