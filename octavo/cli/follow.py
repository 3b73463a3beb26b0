"""Following a job to its end: redrawn in a terminal, line by line elsewhere, one JSON object an event for machines."""

from collections.abc import Iterable

from rich.live import Live
from rich.text import Text

from octavo.cli import screen, wording
from octavo.cli.job_lines import JobLines
from octavo.cli.job_story import JobStory
from octavo.cli.job_view import JobView
from octavo.client import Client
from octavo.errors import from_status
from octavo.v1 import trainer_pb2 as pb

REDRAWS_PER_S = 8


def follow(client: Client, job: pb.Job, *, after_sequence: int = 0, as_json: bool = False) -> JobStory:
    """Shows the events of a job until it has ended, and answers with its story.

    An interruption leaves the job running, says so, and goes on as KeyboardInterrupt.
    """
    story = JobStory.of(job)
    events = client.watch_job(job.name, after_sequence)
    try:
        if as_json:
            _print_json(events, story)
        elif screen.stderr().is_terminal:
            _redraw(events, story)
        else:
            _print_lines(events, story)
    except KeyboardInterrupt:
        _say_that_it_goes_on(story)
        raise
    return story


def conclude(story: JobStory, *, as_json: bool = False) -> int:
    """Says how a job ended and what it made; the exit code. Raises the error of a job that failed."""
    if story.error is not None:
        raise from_status(story.error.error)
    if not as_json:
        console = screen.stderr()
        for output in story.outputs:
            console.print(Text.assemble(("made ", "green"), (output.name, "bold"), f"  {output.message}"))
    return 0 if story.state == pb.JOB_STATE_SUCCEEDED else 1


def _print_json(events: Iterable[pb.JobEvent], story: JobStory) -> None:
    for event in events:
        story.tell(event)
        screen.print_json_line(event)


def _print_lines(events: Iterable[pb.JobEvent], story: JobStory) -> None:
    lines = JobLines(story)
    for event in events:
        story.tell(event)
        lines.tell(event)


def _redraw(events: Iterable[pb.JobEvent], story: JobStory) -> None:
    with Live(JobView(story), console=screen.stderr(), refresh_per_second=REDRAWS_PER_S, transient=False):
        for event in events:
            story.tell(event)


def _say_that_it_goes_on(story: JobStory) -> None:
    name = wording.bare(story.name)
    screen.stderr().print(
        f"\n{name} goes on without us: `octavo jobs watch {name}` follows it again, `octavo jobs cancel {name}` ends it"
    )
