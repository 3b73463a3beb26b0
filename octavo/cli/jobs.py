"""`octavo jobs …`: any long work, from a distance."""

from typing import Annotated

import typer
from google.protobuf import json_format
from rich.text import Text

from octavo.cli import (
    chart,
    experiments,
    follow,
    job_changes,
    job_preview,
    options,
    paging,
    screen,
    short_names,
    wording,
)
from octavo.cli.diagnosis_view import diagnosis_view
from octavo.cli.job_changes import Name, tell
from octavo.cli.job_story import phase_word, subject
from octavo.cli.job_view import CHART_ROWS, state_text
from octavo.cli.options import AsJson, Limit, Yes
from octavo.cli.plan_view import plan_view
from octavo.cli.replay_view import show_replay
from octavo.formats import log_line
from octavo.v1 import trainer_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Any long work: training and the rest, each job with one life cycle.")

app.command()(job_changes.update)
app.command()(job_changes.fork)
app.command()(experiments.plan)
app.command()(experiments.compare)
app.command()(experiments.best)
app.command()(experiments.statistics)
app.command()(job_preview.preview)


@app.command("list")
def list_jobs(
    context: typer.Context,
    limit: Limit = 50,
    where: Annotated[str, typer.Option("--filter", help="`state = RUNNING`, `kind = train`, joined by AND.")] = "",
    as_json: AsJson = False,
) -> None:
    """Lists jobs, newest first.

    Example: `octavo jobs list --filter "state = RUNNING"`
    """
    with options.connected(context) as client:
        response = paging.gather(client.trainer.ListJobs, pb.ListJobsRequest(filter=where), "jobs", limit)
    if as_json:
        screen.print_json(response)
        return
    screen.print_table(
        ["job", "state", "what", ">done", ">step", ">loss", ">validation", "made"],
        [_row(job) for job in response.jobs],
        empty="no jobs; `octavo train DATASET --model NAME` makes one",
    )


@app.command()
def show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Shows a job: state, plan, progress, outputs, and the error of one that failed.

    Example: `octavo jobs show j-1`
    """
    full = short_names.job(name)
    with options.connected(context) as client:
        job = client.trainer.GetJob(pb.GetJobRequest(name=full))
        if as_json:
            screen.print_json(job)
            return
        curves = _curves(
            client.trainer.ListMetrics(pb.ListMetricsRequest(parent=full, max_points=2000, page_size=4000))
        )
    screen.print_facts(_facts(job))
    if job.HasField("plan"):
        screen.stdout().print(plan_view(job.plan))
    for line in chart.draw(curves, min(screen.stdout().width, 100), CHART_ROWS):
        screen.stdout().print(line)
    if job.HasField("replay_report"):
        show_replay(job.replay_report)


@app.command()
def watch(
    context: typer.Context,
    name: Name,
    after: Annotated[int, typer.Option(min=0, help="Only events after this sequence number.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Follows a job to its end; Ctrl-C stops the watching, not the work.

    Example: `octavo jobs watch j-1`
    """
    with options.connected(context) as client:
        job = client.trainer.GetJob(pb.GetJobRequest(name=short_names.job(name)))
        story = follow.follow(client, job, after_sequence=after, as_json=as_json)
        raise typer.Exit(follow.conclude(story, as_json=as_json))


@app.command()
def logs(
    context: typer.Context,
    name: Name,
    limit: Limit = 1000,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Lines about steps too, one a second.")] = False,
    as_json: AsJson = False,
) -> None:
    """Shows the log of a job, oldest line first; with --json one object a line, steps included.

    Examples:

    `octavo jobs logs j-1`

    `octavo jobs logs j-1 --json | jq 'select(.type == "step") | .loss'`
    """
    least = pb.LOG_SEVERITY_UNSPECIFIED if verbose or as_json else pb.LOG_SEVERITY_INFO
    with options.connected(context) as client:
        request = pb.ListLogsRequest(parent=short_names.job(name), min_severity=least)
        response = paging.gather(client.trainer.ListLogs, request, "lines", limit)
    if as_json:
        for line in response.lines:
            print(log_line.to_json(line))
        return
    for line in response.lines:
        severity = wording.enum_word(pb.LogSeverity.Name(line.severity), "LOG_SEVERITY_")
        style = {"warning": "yellow", "error": "bold red"}.get(severity, "dim")
        when = line.create_time.ToDatetime().strftime("%H:%M:%S") if line.HasField("create_time") else ""
        screen.stdout().print(Text.assemble((f"{when} {severity:<7} ", style), line.message), soft_wrap=True)


@app.command()
def cancel(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Ends a job for good; its last checkpoint is kept.

    Example: `octavo jobs cancel j-1`
    """
    with options.connected(context) as client:
        tell(client.trainer.CancelJob(pb.CancelJobRequest(name=short_names.job(name))), as_json=as_json)


@app.command()
def pause(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Saves a checkpoint and stops; `octavo jobs resume` goes on, bit for bit.

    Example: `octavo jobs pause j-1`
    """
    with options.connected(context) as client:
        tell(client.trainer.PauseJob(pb.PauseJobRequest(name=short_names.job(name))), as_json=as_json)


@app.command()
def resume(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Puts a paused job back into the queue.

    Example: `octavo jobs resume j-1`
    """
    with options.connected(context) as client:
        tell(client.trainer.ResumeJob(pb.ResumeJobRequest(name=short_names.job(name))), as_json=as_json)


@app.command()
def checkpoint(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Saves a checkpoint now.

    Example: `octavo jobs checkpoint j-1`
    """
    with options.connected(context) as client:
        saved = client.trainer.CheckpointJob(pb.CheckpointJobRequest(name=short_names.job(name)))
    if as_json:
        screen.print_json(saved)
    else:
        screen.stdout().print(f"checkpoint at step {saved.step}, {wording.size(saved.size_bytes)}, {saved.digest}")


@app.command()
def replay(
    context: typer.Context,
    name: Name,
    *,
    start: Annotated[int, typer.Option("--from", min=0, help="Steps done before; 0 is the beginning.")] = 0,
    end: Annotated[int, typer.Option("--to", min=0, help="The last step; 0 is the newest that is done.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Does steps of a train job again and compares losses and states, bit by bit; fails where any differs.

    Example: `octavo jobs replay j-1 --from 200 --to 400`
    """
    spec = pb.ReplaySpec(job=short_names.job(name), from_step=start, to_step=end)
    with options.connected(context) as client:
        job = client.trainer.CreateJob(pb.CreateJobRequest(job=pb.Job(replay=spec)))
        story = follow.follow(client, job, as_json=as_json)
        code = follow.conclude(story, as_json=as_json)
    report = story.replay
    if report is not None and not as_json:
        show_replay(report)
    raise typer.Exit(code if report is not None and report.is_equal else 1)


@app.command()
def diagnose(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Says how a training is doing, with evidence and advice.

    Example: `octavo jobs diagnose j-1`
    """
    with options.connected(context) as client:
        diagnosis = client.trainer.DiagnoseJob(pb.DiagnoseJobRequest(name=short_names.job(name)))
    if as_json:
        screen.print_json(diagnosis)
        return
    screen.stdout().print(diagnosis_view(diagnosis))


@app.command()
def delete(context: typer.Context, name: Name, yes: Yes = False) -> None:
    """Forgets a job that has ended, with its events and checkpoints; what it registered stays.

    Example: `octavo jobs delete j-1 --yes`
    """
    full = short_names.job(name)
    options.confirm(f"Forget {full} with its events and checkpoints?", yes=yes)
    with options.connected(context) as client:
        client.trainer.DeleteJob(pb.DeleteJobRequest(name=full))
    screen.stderr().print(f"deleted {full}")


def _row(job: pb.Job) -> list[screen.Cell]:
    has_loss, has_evaluation = job.HasField("latest_metric"), job.HasField("latest_evaluation")
    return [
        Text(wording.bare(job.name), style="bold"),
        state_text(job.state),
        job.display_name or subject(job),
        f"{job.progress.fraction:.0%}",
        f"{job.progress.step:,}",
        f"{job.latest_metric.loss:.3f}" if has_loss else "",
        f"{job.latest_evaluation.validation_loss:.3f}" if has_evaluation else "",
        wording.ago(job.create_time),
    ]


def _facts(job: pb.Job) -> list[tuple[str, screen.Cell]]:
    progress, best = job.progress, job.best_evaluation
    eta_s = wording.seconds(progress.eta)
    return [
        ("job", Text(job.name, style="bold")),
        ("what", job.display_name or subject(job)),
        ("state", state_text(job.state)),
        ("why", job.state_message),
        ("phase", phase_word(progress.phase) if job.state == pb.JOB_STATE_RUNNING else ""),
        ("progress", f"{progress.fraction:.0%}, step {progress.step:,} of {progress.total_steps or '?'}"),
        ("left", wording.lasting(eta_s) if eta_s else ""),
        (
            "best",
            f"validation {best.validation_loss:.4f} at step {best.step:,}" if best.tokens else "",
        ),
        ("attempts", str(job.attempt_count) if job.attempt_count > 1 else ""),
        ("made", ", ".join(job.outputs)),
        ("configuration", job.configuration_id),
        ("ended", progress.stop.message),
        ("live", _live(job.live)),
        ("error", Text(job.error.message, style="red")),
        ("created", wording.ago(job.create_time)),
    ]


def _live(live: pb.LiveSettings) -> str:
    """Live settings as they would be asked for."""
    return json_format.MessageToJson(live, preserving_proto_field_name=True, indent=None) if live.ListFields() else ""


def _curves(response: pb.ListMetricsResponse) -> list[chart.Curve]:
    losses = [(float(metric.step), metric.loss) for metric in response.metrics]
    validation = [(float(evaluation.step), evaluation.validation_loss) for evaluation in response.evaluations]
    return [chart.Curve(losses, "cyan"), chart.Curve(validation, "bold yellow", is_connected=False)]
