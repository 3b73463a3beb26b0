"""What the events of a job add up to: figures, curves, samples, outputs. Knows nothing of how they are shown."""

import math
from dataclasses import dataclass, field

from octavo.cli import wording
from octavo.v1 import trainer_pb2 as pb

TERMINAL = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)

# Enough for the widest terminal; above it every second point is dropped.
_MOST_POINTS = 4096
_SMOOTHING = 0.95


@dataclass
class JobStory:
    """A job as its events have told it so far."""

    name: str
    subject: str = ""
    state: pb.JobState.ValueType = pb.JOB_STATE_UNSPECIFIED
    progress: pb.JobProgress = field(default_factory=pb.JobProgress)
    plan: pb.Plan | None = None
    metric: pb.TrainingMetric | None = None
    evaluation: pb.Evaluation | None = None
    first_sample: pb.SampleText | None = None
    sample: pb.SampleText | None = None
    losses: list[tuple[float, float]] = field(default_factory=list)
    validation: list[tuple[float, float]] = field(default_factory=list)
    outputs: list[pb.JobOutput] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    usage: pb.ResourceUsage | None = None
    attempts: int = 0
    error: pb.StateChange | None = None
    replay: pb.ReplayReport | None = None
    last_sequence: int = 0
    _smooth: float = 0.0
    _weight: float = 0.0
    _speed: float = 0.0

    @classmethod
    def of(cls, job: pb.Job) -> "JobStory":
        """The beginning of a story: what the job itself says."""
        story = cls(job.name, subject(job), job.state)
        if job.HasField("plan"):
            story.plan = job.plan
        return story

    def tell(self, event: pb.JobEvent) -> None:
        """Adds one event."""
        self.last_sequence = event.sequence
        kind = event.WhichOneof("event")
        if kind is not None:
            getattr(self, f"_tell_{kind}")(getattr(event, kind))

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.state in TERMINAL

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return max(self.progress.step, self.metric.step if self.metric else 0)

    @property
    def total_steps(self) -> int:
        """Optimizer steps in all; 0 while unknown."""
        return self.progress.total_steps or (self.plan.total_steps if self.plan else 0)

    @property
    def loss(self) -> float:
        """Training loss, averaged over the last steps; nats per token, NaN before the first step."""
        return self._smooth / self._weight if self._weight else math.nan

    @property
    def tokens_per_second(self) -> float:
        """Speed, averaged over the last steps."""
        return self._speed / self._weight if self._weight else 0.0

    def _tell_state_change(self, change: pb.StateChange) -> None:
        self.state = change.state
        if change.state == pb.JOB_STATE_FAILED:
            self.error = change

    def _tell_attempt_start(self, start: pb.AttemptStart) -> None:
        self.attempts = start.attempt
        if start.attempt > 1:
            self.notes.append(f"attempt {start.attempt} goes on from step {start.step}")
            self.losses = [point for point in self.losses if point[0] <= start.step]
            self.validation = [point for point in self.validation if point[0] <= start.step]

    def _tell_plan(self, plan: pb.Plan) -> None:
        self.plan = plan

    def _tell_progress(self, progress: pb.JobProgress) -> None:
        self.progress = progress

    def _tell_metric(self, metric: pb.TrainingMetric) -> None:
        self.metric = metric
        self._smooth = _SMOOTHING * self._smooth + (1 - _SMOOTHING) * metric.loss
        self._speed = _SMOOTHING * self._speed + (1 - _SMOOTHING) * metric.tokens_per_second
        self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        self.losses.append((metric.step, metric.loss))
        if len(self.losses) > _MOST_POINTS:
            self.losses = self.losses[::2]

    def _tell_evaluation(self, evaluation: pb.Evaluation) -> None:
        self.evaluation = evaluation
        self.validation.append((evaluation.step, evaluation.validation_loss))

    def _tell_sample(self, sample: pb.SampleText) -> None:
        self.first_sample = self.first_sample or sample
        self.sample = sample

    def _tell_log(self, line: pb.LogLine) -> None:
        if line.severity >= pb.LOG_SEVERITY_WARNING:
            self.notes.append(line.message)

    def _tell_checkpoint(self, checkpoint: pb.Checkpoint) -> None:
        del checkpoint  # counted by the job, not shown

    def _tell_command_applied(self, applied: pb.CommandApplied) -> None:
        command = (applied.command.WhichOneof("command") or "command").replace("live", "live settings")
        self.notes.append(f"{command} applied at step {applied.step}")

    def _tell_resource_usage(self, usage: pb.ResourceUsage) -> None:
        self.usage = usage

    def _tell_recovery(self, recovery: pb.Recovery) -> None:
        # A line of the log says it in words.
        self.losses = [point for point in self.losses if point[0] <= recovery.step]
        self.validation = [point for point in self.validation if point[0] <= recovery.step]

    def _tell_output(self, output: pb.JobOutput) -> None:
        self.outputs.append(output)

    def _tell_replay_report(self, report: pb.ReplayReport) -> None:
        self.replay = report


def subject(job: pb.Job) -> str:
    """What a job is about, in a few words: `train poet on tiny`."""
    kind = job.WhichOneof("spec") or "job"
    spec = getattr(job, kind) if kind != "job" else None
    if kind == "train":
        return f"train {wording.compact(job.train.model)} on {wording.compact(job.train.dataset)}"
    if kind == "tune":
        return f"tune {wording.compact(job.tune.train.model)} on {wording.compact(job.tune.train.dataset)}"
    target = getattr(spec, "version", "") or getattr(spec, "deployment", "") or getattr(spec, "job", "")
    return f"{kind} {wording.compact(target)}"


def state_word(state: pb.JobState.ValueType) -> str:
    """`running`."""
    return wording.enum_word(pb.JobState.Name(state), "JOB_STATE_")


def phase_word(phase: pb.JobPhase.ValueType) -> str:
    """`train`."""
    return wording.enum_word(pb.JobPhase.Name(phase), "JOB_PHASE_") if phase else ""
