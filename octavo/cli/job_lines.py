"""A job as lines of text, one for each thing worth a line: for files, pipes and terminals that cannot redraw."""

from octavo.cli import screen, wording
from octavo.cli.job_story import JobStory, phase_word, state_word
from octavo.v1 import trainer_pb2 as pb

_LINES_OF_STEPS = 20


class JobLines:
    """Writes what an event adds to a story, on stderr."""

    def __init__(self, story: JobStory) -> None:
        self._story = story
        self._console = screen.stderr()
        self._phase = pb.JOB_PHASE_UNSPECIFIED
        self._told_fraction = -1.0

    def tell(self, event: pb.JobEvent) -> None:
        """Writes the lines of an event that the story already knows."""
        kind = event.WhichOneof("event")
        line = getattr(self, f"_{kind}", lambda _: "")(getattr(event, kind)) if kind else ""
        if line:
            self._console.out(line, highlight=False)

    def _state_change(self, change: pb.StateChange) -> str:
        return f"{wording.bare(self._story.name)}: {state_word(change.state)} {change.message}".rstrip()

    def _progress(self, progress: pb.JobProgress) -> str:
        if progress.phase == self._phase:
            return ""
        self._phase = progress.phase
        return f"{phase_word(progress.phase)}: {progress.message}".rstrip(": ")

    def _metric(self, metric: pb.TrainingMetric) -> str:
        total = self._story.total_steps
        fraction = metric.step / total if total else 0.0
        if fraction < self._told_fraction + 1 / _LINES_OF_STEPS and metric.step < total:
            return ""
        self._told_fraction = fraction
        speed = wording.count(self._story.tokens_per_second)
        return f"step {metric.step}/{total or '?'}  loss {self._story.loss:.4f}  {speed} tokens/s"

    def _evaluation(self, evaluation: pb.Evaluation) -> str:
        return (
            f"step {evaluation.step}  validation {evaluation.validation_loss:.4f}  "
            f"{evaluation.bits_per_byte:.3f} bits/byte  perplexity {evaluation.perplexity:.2f}"
        )

    def _sample(self, sample: pb.SampleText) -> str:
        return f"sample at step {sample.step}: {wording.one_line(sample.prompt + sample.text, 160)}"

    def _attempt_start(self, start: pb.AttemptStart) -> str:
        return f"attempt {start.attempt} goes on from step {start.step}" if start.attempt > 1 else ""

    def _log(self, line: pb.LogLine) -> str:
        return line.message if line.severity >= pb.LOG_SEVERITY_WARNING else ""

    def _checkpoint(self, checkpoint: pb.Checkpoint) -> str:
        return f"checkpoint at step {checkpoint.step}, {wording.size(checkpoint.size_bytes)}"

    def _output(self, output: pb.JobOutput) -> str:
        return f"made {output.name}  {output.message}".rstrip()
