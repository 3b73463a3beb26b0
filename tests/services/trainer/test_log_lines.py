"""The log tells what happened, for people and as JSON lines, and a lost writer spoils no line."""

import json
import math

from octavo.formats import log_line
from octavo.v1 import trainer_pb2 as pb
from services.trainer import job_pages
from services.trainer.events import EventLog, EventReader
from services.trainer.job_directory import JobDirectory
from services.trainer.log_lines import LogFile, LogLines

PLAN = pb.Plan(dataset_tokens=1000, tokens_per_step=100)
FIELDS = ["timestamp", "type", "level", "message", "step", "epoch", "step_time", "learning_rate", "loss", "grad_norm"]


def metric(step, loss=2.5):
    one = pb.TrainingMetric(step=step, loss=loss, gradient_norm=0.5, learning_rate=0.004)
    one.step_duration.FromMilliseconds(20)
    return pb.JobEvent(metric=one)


def training(step):
    return pb.JobEvent(progress=pb.JobProgress(phase=pb.JOB_PHASE_TRAIN, step=step))


def write(directory):
    job = JobDirectory(directory)
    job.create(pb.Job(name="jobs/j", plan=PLAN))
    with LogFile(job.log_file, PLAN) as file, EventLog(directory, attempt=1, listener=file.tell) as log:
        log.log(pb.LOG_SEVERITY_INFO, "reading")
        for event in (training(0), metric(1), metric(2), training(2), training(2), metric(3, math.nan), training(3)):
            log.append(event)
        log.append(pb.JobEvent(evaluation=pb.Evaluation(step=3, validation_loss=2.4, bits_per_byte=3.4)))
        log.append(pb.JobEvent(state_change=pb.StateChange(state=pb.JOB_STATE_FAILED, message="the loss is nan")))
    return job


def test_each_report_of_progress_is_a_line_about_the_newest_step(tmp_path):
    job = write(tmp_path)
    lines = job_pages.list_logs(job, pb.ListLogsRequest(parent="jobs/j")).lines
    assert [(line.type, line.step) for line in lines] == [
        ("log", 0),
        ("step", 2),
        ("step", 3),
        ("evaluation", 3),
        ("state", 0),
    ]
    assert lines[1].epoch == 0.2
    assert lines[-1].severity == pb.LOG_SEVERITY_ERROR
    without_steps = job_pages.list_logs(job, pb.ListLogsRequest(parent="jobs/j", min_severity=pb.LOG_SEVERITY_INFO))
    assert [line.type for line in without_steps.lines] == ["log", "evaluation", "state"]


def test_the_file_beside_the_events_has_the_same_lines(tmp_path):
    job = write(tmp_path)
    story = LogLines(PLAN)
    told = [story.tell(event) for event in EventReader(tmp_path).read_all()]
    written = job.log_file.read_text().splitlines()
    assert written == [log_line.to_json(line) for line in told if line is not None]
    objects = [json.loads(line) for line in written]
    assert all(list(one) == FIELDS for one in objects)
    step = objects[1]
    assert (step["type"], step["level"], step["step"], step["epoch"]) == ("step", "debug", 2, 0.2)
    assert (step["step_time"], step["learning_rate"], step["loss"], step["grad_norm"]) == (0.02, 0.004, 2.5, 0.5)
    assert objects[2]["loss"] is None
    assert objects[0]["epoch"] is None


def test_a_line_that_was_torn_is_ended_before_the_next(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"timestamp": "2026')
    with LogFile(file, PLAN) as log:
        log.tell(pb.JobEvent(log=pb.LogLine(message="again", severity=pb.LOG_SEVERITY_INFO)))
    torn, whole = file.read_text().splitlines()
    assert torn == '{"timestamp": "2026'
    assert json.loads(whole)["message"] == "again"
