"""The phases of a replay, in order: read what is recorded of the other job, prepare its corpus, do its steps again."""

from __future__ import annotations

from octavo.errors import NotFound
from octavo.formats.checkpoint import CheckpointFolder
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.environment import fingerprint
from services.trainer.events import EventReader
from services.trainer.history import fold
from services.trainer.job_directory import JobDirectory
from services.trainer.job_run import JobRun
from services.trainer.loop import configure_torch
from services.trainer.pipeline import new_training, prepared_corpus, prompter_of, say_nothing
from services.trainer.replay import (
    Recorded,
    RepeatedControl,
    Replay,
    WindowProgress,
    check_environment,
    check_start,
    described,
    starting_point,
)


class ReplayPipeline:
    """One replay in one worker."""

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self._spec = run.job.plan.replay
        self._directory = JobDirectory(run.directory.path.parent / self._spec.job.removeprefix("jobs/"))
        self._kept = CheckpointFolder(self._directory.checkpoints)

    def run(self, attempt: int) -> None:
        """Do the steps again and report. Raises Leaving, or why it cannot be done."""
        target, past = self._target()
        recorded = Recorded(past)
        spec = target.plan.train
        configure_torch(threads=spec.threads)
        environment = fingerprint(spec.device, spec.threads)
        start, damages = starting_point(target, self._kept, self._spec.from_step)
        first = start.entry.step if start is not None else 0
        self._run.begin(attempt, environment, step=first, damages=damages)
        check_environment(recorded.environments(first + 1, self._spec.to_step), environment)
        if start is not None:
            check_start(start, recorded)
        replay = self._replay(target, past, recorded)
        progress = WindowProgress(self._run, first, self._spec.to_step)
        progress.begin_training(first, self._spec.to_step, 0)
        replay.repeat(start, progress)
        self._conclude(replay.report, first)

    def _target(self) -> tuple[pb.Job, list[pb.JobEvent]]:
        try:
            job = self._directory.read_job()
        except FileNotFoundError as error:
            raise NotFound(
                Reason.REASON_JOB_NOT_FOUND, f"{self._spec.job} was deleted meanwhile", job=self._spec.job
            ) from error
        past = EventReader(self._directory.path).read_all()
        for event in past:
            fold(job, event)
        return job, past

    def _replay(self, target: pb.Job, past: list[pb.JobEvent], recorded: Recorded) -> Replay:
        run, spec = self._run, target.plan.train
        corpus = prepared_corpus(run, spec, run.dataset(spec.dataset))
        return Replay(
            recorded=recorded,
            kept=self._kept,
            told={event.metric.step for event in run.past if event.HasField("metric")},
            training=new_training(spec, corpus, say_nothing),
            prompter=prompter_of(corpus),
            # Never the folder of the job that is replayed: that one is only read.
            folder=CheckpointFolder(run.directory.checkpoints),
            log=run.log,
            control=RepeatedControl(self._directory.path, run.log, past, target.live, run=run, last=self._spec.to_step),
            past=past,
        )

    def _conclude(self, report: pb.ReplayReport, first: int) -> None:
        report.start_step, report.end_step = first, self._spec.to_step
        self._run.log.append(pb.JobEvent(replay_report=report))
        states = f"{sum(state.is_equal for state in report.states)} of {len(report.states)} states"
        found = f"steps {first + 1} to {report.end_step} again: {report.compared_steps} losses and {states} compared"
        if report.is_equal:
            self._run.log.log(pb.LOG_SEVERITY_INFO, f"{found}, all the same to the last bit", report.end_step)
        else:
            self._run.warn(f"{found}; the first difference: {described(report.first_difference)}")
