"""`octavo jobs plan|compare|best|statistics`: what runs will come to, and what came of them."""

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from octavo.cli import chart, config_file, options, screen, short_names, wording
from octavo.cli.options import AsJson
from octavo.cli.plan_view import plan_view
from octavo.v1 import trainer_pb2 as pb

_STYLES = ("cyan", "yellow", "magenta", "green", "blue", "red", "white")
_CHART_ROWS = 12


class Over(StrEnum):
    """What curves run over."""

    STEP = "step"
    TOKENS = "tokens"
    TIME = "time"


def plan(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A YAML file with fields of TrainSpec.", exists=True, dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Says what a config file comes to; nothing runs. The resolved spec goes to stdout as YAML, ready to be trained.

    Example: `octavo jobs plan poet.yaml > resolved.yaml`
    """
    job = pb.Job(train=config_file.read(file))
    with options.connected(context) as client:
        response = client.trainer.PlanJob(pb.PlanJobRequest(job=job))
    if as_json:
        screen.print_json(response.plan)
        return
    screen.stderr().print(plan_view(response.plan))
    print(config_file.write(response.plan.train), end="")


def compare(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Two or more of `j-…`.", metavar="JOB...")],
    *,
    metric: Annotated[
        list[str] | None, typer.Option(help="Compare by this one; repeatable, the first decides.")
    ] = None,
    over: Annotated[Over, typer.Option(help="What the curves run over.")] = Over.STEP,
    as_json: AsJson = False,
) -> None:
    """Sets jobs side by side: their metrics, what differs in their specs, their losses as curves, and who is best.

    Example: `octavo jobs compare j-1 j-2 --over time`
    """
    request = pb.CompareJobsRequest(
        names=[short_names.job(name) for name in names],
        metrics=metric,
        axis=pb.CurveAxis.Value(f"CURVE_AXIS_{over.name}"),
    )
    with options.connected(context) as client:
        response = client.trainer.CompareJobs(request)
    if as_json:
        screen.print_json(response)
        return
    heads = [wording.bare(one.job.name) for one in response.jobs]
    screen.print_table(
        ["metric", *(f">{head}" for head in heads)], [_metric_row(one) for one in response.metrics], empty=""
    )
    screen.print_table(
        ["differs", *(f">{head}" for head in heads)],
        [[one.field.removeprefix("train."), *one.values] for one in response.differences],
        empty="their specs are the same",
    )
    _draw(response, over)
    screen.stdout().print(response.verdict)


def best(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="`tiny` (its newest version that was learnt) or `tiny/2`.")],
    *,
    metric: Annotated[str, typer.Option(help="What is compared, as in `octavo jobs compare`.")] = "bits_per_byte",
    others: Annotated[int, typer.Option(min=0, max=100, help="How many of the next best to show.")] = 4,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print its spec alone, for `octavo train --config`.")] = False,
    as_json: AsJson = False,
) -> None:
    """Shows the configuration that did best on a dataset, by the mean over its seeds, and the next best.

    Example: `octavo jobs best tiny --yaml > best.yaml`
    """
    request = pb.GetBestConfigurationRequest(dataset=short_names.dataset(dataset), metric=metric, max_others=others)
    with options.connected(context) as client:
        response = client.trainer.GetBestConfiguration(request)
    if as_json:
        screen.print_json(response)
    elif as_yaml:
        print(config_file.write(response.best.train), end="")
    else:
        screen.print_table(
            ["configuration", f">{response.metric}", ">deviation", ">jobs", "best job"],
            [_ranked_row(one) for one in (response.best, *response.others)],
            empty="",
        )


def statistics(context: typer.Context, as_json: AsJson = False) -> None:
    """Shows all jobs in figures: how many, how well, how long, how fast.

    Example: `octavo jobs statistics`
    """
    with options.connected(context) as client:
        response = client.trainer.GetTrainingStatistics(pb.GetTrainingStatisticsRequest())
    if as_json:
        screen.print_json(response)
        return
    screen.print_facts(_statistics_facts(response))
    for head, figures in (("dataset", response.datasets), ("model", response.models)):
        if figures:
            rows = [_figures_row(name, figures[name]) for name in sorted(figures)]
            screen.print_table([head, *_FIGURES], rows, empty="")


_FIGURES = (">jobs", ">succeeded", ">failed", ">mean time", ">tokens", ">best bits/byte")


def _metric_row(one: pb.MetricComparison) -> list[screen.Cell]:
    best_value = min(
        (value.value for value in one.values if value.HasField("value")),
        key=lambda value: value if one.is_lower_better else -value,
        default=math.nan,
    )
    cells: list[screen.Cell] = [one.metric]
    for value in one.values:
        shown = _figure(value.value) if value.HasField("value") else "-"
        cells.append(Text(shown, style="bold green" if value.HasField("value") and value.value == best_value else ""))
    return cells


def _draw(response: pb.CompareJobsResponse, over: Over) -> None:
    curves, legend = [], Text(f"training loss over {over}: ", style="dim")
    for index, one in enumerate(response.jobs):
        style = _STYLES[index % len(_STYLES)]
        curves.append(chart.Curve([(point.x, point.y) for point in one.training_curve], style))
        legend.append(f" ━ {wording.bare(one.job.name)}", style=style)
    lines = chart.draw(curves, min(screen.stdout().width, 100), _CHART_ROWS)
    for line in (legend, *lines) if lines else ():
        screen.stdout().print(line)


def _ranked_row(one: pb.RankedConfiguration) -> list[screen.Cell]:
    return [
        Text(one.configuration_id, style="bold"),
        _figure(one.mean),
        f"±{_figure(one.standard_deviation)}" if one.HasField("standard_deviation") else "",
        str(len(one.jobs)),
        wording.bare(one.jobs[0]),
    ]


def _statistics_facts(response: pb.TrainingStatistics) -> Sequence[tuple[str, screen.Cell]]:
    states = [
        f"{count} {wording.enum_word(state, 'JOB_STATE_')}" for state, count in sorted(response.jobs_by_state.items())
    ]
    speeds = [
        f"{wording.count(one.tokens_per_second)} tokens/s over the last {wording.lasting(one.window.seconds)} "
        f"({wording.lasting(wording.seconds(one.busy_duration))} busy)"
        for one in response.throughput
        if one.tokens
    ]
    return [
        ("jobs", ", ".join(states) or "none"),
        ("kinds", ", ".join(f"{count} {kind}" for kind, count in sorted(response.jobs_by_kind.items()))),
        ("success", f"{response.success_rate:.0%}" if response.HasField("success_rate") else ""),
        ("time", _spread(response, "duration")),
        ("waiting", _spread(response, "waiting_duration")),
        ("trained", f"{wording.count(response.total_tokens)} tokens" if response.total_tokens else ""),
        *(("speed", speed) for speed in speeds),
        ("at once", str(response.max_running_jobs)),
    ]


def _spread(response: pb.TrainingStatistics, of: str) -> str:
    if not response.HasField(f"mean_{of}"):  # type: ignore[arg-type]
        return ""
    mean, median = (wording.lasting(wording.seconds(getattr(response, f"{kind}_{of}"))) for kind in ("mean", "median"))
    return f"{mean} on average, median {median}"


def _figures_row(name: str, one: pb.JobFigures) -> list[screen.Cell]:
    return [
        Text(wording.bare(name), style="bold"),
        str(one.jobs),
        str(one.succeeded_jobs),
        str(one.failed_jobs),
        wording.lasting(wording.seconds(one.mean_duration)) if one.HasField("mean_duration") else "",
        wording.count(one.tokens),
        f"{one.best_bits_per_byte:.3f}" if one.HasField("best_bits_per_byte") else "",
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
