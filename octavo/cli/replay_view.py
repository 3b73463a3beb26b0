"""What a replay found, for people: the states that were reached again, and what differed first."""

from rich.text import Text

from octavo.cli import screen, wording
from octavo.v1 import trainer_pb2 as pb


def show_replay(report: pb.ReplayReport) -> None:
    """Prints a table of states, then the verdict."""
    if report.states:
        screen.print_table([">step", "state", "recorded", "now"], [_row(state) for state in report.states], empty="")
    steps = f"steps {report.start_step + 1:,} to {report.end_step:,}, {report.compared_steps:,} losses"
    if report.is_equal:
        screen.stdout().print(Text.assemble(("the same to the last bit", "bold green"), f": {steps}"))
        return
    first = report.first_difference
    screen.print_facts(
        [
            ("differs", Text(f"{first.what} of step {first.step:,}", style="bold red")),
            ("recorded", first.recorded),
            ("now", first.replayed),
            ("in", ", ".join(first.tensors)),
            ("compared", steps),
        ]
    )


def _row(state: pb.ReplayedState) -> list[screen.Cell]:
    verdict = Text("same", style="green") if state.is_equal else Text("differs", style="bold red")
    return [
        f"{state.step:,}",
        verdict,
        wording.short_digest(state.recorded_digest),
        "" if state.is_equal else wording.short_digest(state.replayed_digest),
    ]
