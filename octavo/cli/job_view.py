"""A job as one watches it: bar, figures, loss curve, newest sample. Redrawn in place by rich.live."""

import math

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from octavo.cli import chart, wording
from octavo.cli.job_story import JobStory, phase_word, state_word
from octavo.v1 import trainer_pb2 as pb

CHART_ROWS = 8
SAMPLE_ROWS = 7
_PHASES = {
    "prepare": "reading the dataset, making the tokenizer",
    "calibrate": "measuring the speed of this machine",
    "train": "training",
    "evaluate": "evaluating the final weights",
    "export": "writing the ONNX graphs",
    "prove": "proving the export equal to the checkpoint",
    "register": "registering the version",
    "deploy": "deploying",
}
_STATE_STYLES = {
    pb.JOB_STATE_SUCCEEDED: "bold green",
    pb.JOB_STATE_FAILED: "bold red",
    pb.JOB_STATE_CANCELLED: "yellow",
    pb.JOB_STATE_PAUSED: "yellow",
    pb.JOB_STATE_RUNNING: "cyan",
}


def state_text(state: pb.JobState.ValueType) -> Text:
    """A state in its colour."""
    return Text(state_word(state), style=_STATE_STYLES.get(state, ""))


class JobView:
    """Draws a story as it is at that moment."""

    def __init__(self, story: JobStory) -> None:
        self._story = story
        self._spinner = Spinner("dots", style="cyan")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, 100)
        parts: list[RenderableType] = [self._headline(), self._bar(width), self._figures(), self._machine()]
        parts += self._curve(width)
        parts += self._sample(width)
        parts += [Text(f"! {note}", style="yellow") for note in self._story.notes[-3:]]
        yield Group(*parts)

    def _headline(self) -> RenderableType:
        story = self._story
        title = Text.assemble((wording.bare(story.name), "bold"), "  ", (story.subject, "dim"), "   ")
        if story.state != pb.JOB_STATE_RUNNING:
            waiting = "  until a running job makes room" if story.state == pb.JOB_STATE_QUEUED else ""
            return Text.assemble(title, state_text(story.state), (waiting, "dim"))
        phase = phase_word(story.progress.phase)
        # The worker's own words are more exact than the phase, except in the long middle, where figures speak.
        words = (
            story.progress.message if phase != "train" and story.progress.message else _PHASES.get(phase, "starting")
        )
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(title, self._spinner, Text(words, style="cyan"))
        return row

    def _bar(self, width: int) -> RenderableType:
        story = self._story
        done = 1.0 if story.state == pb.JOB_STATE_SUCCEEDED else story.progress.fraction
        eta_s = wording.seconds(story.progress.eta)
        after = [f"{done:4.0%}"]
        if story.total_steps:
            after.append(f"step {story.step:,}/{story.total_steps:,}")
        if eta_s and not story.is_over:
            after.append(f"{wording.lasting(eta_s)} left")
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(ProgressBar(total=1.0, completed=done, width=max(16, width - 44)), Text("  ".join(after)))
        return row

    def _figures(self) -> Text:
        story = self._story
        figures = Text()
        if not math.isnan(story.loss):
            figures.append(f"loss {story.loss:.3f}", style="cyan")
        if story.evaluation:
            figures.append(f"   validation {story.evaluation.validation_loss:.3f}", style="yellow")
            figures.append(f" ({story.evaluation.bits_per_byte:.2f} bits/byte)", style="dim")
        if story.tokens_per_second:
            figures.append(f"   {wording.count(story.tokens_per_second)} tokens/s")
        if story.metric:
            figures.append(f"   {wording.count(story.metric.tokens)} tokens", style="dim")
        return figures

    def _machine(self) -> Text:
        """How hard model and machine work: the gradient, the update, FLOPS, CPU, memory, GPUs."""
        story, parts = self._story, []
        if story.metric:
            parts.append(f"gradient {story.metric.gradient_norm:.3g}")
            parts += [f"update {story.metric.update_ratio:.2%}"] if story.metric.update_ratio else []
            parts += [f"{story.metric.flops_utilization:.0%} of peak FLOPS"] if story.metric.flops_utilization else []
        if story.usage:
            parts.append(f"cpu {story.usage.process_cpu_cores:.1f} cores")
            parts.append(f"memory {wording.size(story.usage.process_memory_bytes)}")
            parts += [_gpu_words(gpu) for gpu in story.usage.gpus]
        return Text("   ".join(parts), style="dim")

    def _curve(self, width: int) -> list[Text]:
        curves = [
            chart.Curve(self._story.losses, "cyan"),
            chart.Curve(self._story.validation, "bold yellow", is_connected=False),
        ]
        return chart.draw(curves, width, CHART_ROWS, x_end=self._story.total_steps)

    def _sample(self, width: int) -> list[Text]:
        sample = self._story.sample
        if sample is None:
            return []
        return [Text(f"the model writes, at step {sample.step:,}:", style="dim"), *sample_lines(sample, width)]


def _gpu_words(gpu: pb.GpuUsage) -> str:
    words = [f"gpu {gpu.index}", f"{gpu.utilization:.0%}" if gpu.HasField("utilization") else ""]
    words += [wording.size(gpu.memory_used_bytes)]
    words += [f"{gpu.temperature_celsius:.0f} °C"] if gpu.HasField("temperature_celsius") else []
    words += [f"{gpu.power_watts:.0f} W"] if gpu.HasField("power_watts") else []
    return " ".join(word for word in words if word)


def sample_lines(sample: pb.SampleText, width: int, rows: int = SAMPLE_ROWS) -> list[Text]:
    """The beginning of a sample, its prompt dimmed, cut to `rows` lines of `width` characters."""
    text = Text.assemble((wording.printable(sample.prompt), "dim"), (wording.printable(sample.text), "green"))
    text.expand_tabs(4)
    lines = [line for line in text.split("\n") if line.plain.strip()][:rows]
    for line in lines:
        line.truncate(width - 4, overflow="ellipsis")
    return [Text("  │ ", style="dim") + line for line in lines]
