"""`octavo jobs update` and `octavo jobs fork`: what is changed of a job, and a job that goes on from another."""

from typing import Annotated

import typer

from octavo.cli import options, screen, short_names, spec_fields, wording
from octavo.cli.durations import duration
from octavo.cli.job_story import state_word
from octavo.cli.options import AsJson
from octavo.v1 import trainer_pb2 as pb

Name = Annotated[str, typer.Argument(help="`j-…` or `jobs/j-…`.", metavar="JOB")]


def update(
    context: typer.Context,
    name: Name,
    *,
    priority: Annotated[int | None, typer.Option(min=-100, max=100, help="Higher runs first.")] = None,
    title: Annotated[str | None, typer.Option(help="What to call it, for people.")] = None,
    timeout: Annotated[
        str | None, typer.Option(help="Longest running time: 2h; `none` lifts it.", metavar="TIME")
    ] = None,
    learning_rate_scale: Annotated[float | None, typer.Option(min=0, help="Times the plan's own, from now on.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What samples go on from now; repeatable.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any live setting: `--set weight_decay=0.1`.", metavar="KEY=VALUE"),
    ] = None,
    as_planned: Annotated[
        list[str] | None, typer.Option(help="Put a live setting back to the plan; repeatable.", metavar="KEY")
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="End training now; evaluate, prove and register.")] = False,
    as_json: AsJson = False,
) -> None:
    """Changes the priority, title or time limit of a job, or the live settings of a train job that has not ended.

    Live settings take effect at the next step and are repeated there by a resumed run.

    Examples:

    `octavo jobs update j-1 --learning-rate-scale 0.5 --set weight_decay=0.1`

    `octavo jobs update j-1 --set early_stopping.patience=3 --set target_loss=1.5`

    `octavo jobs update j-1 --finish`
    """
    job = pb.Job(name=short_names.job(name), priority=priority or 0, display_name=title or "")
    paths = ["priority"] if priority is not None else []
    paths += ["display_name"] if title is not None else []
    if timeout is not None:
        paths.append("timeout")
        if timeout != "none":
            job.timeout.CopyFrom(duration(timeout))
    settings = [*(set_ or []), *(["finish=true"] if finish else [])]
    settings += [f"learning_rate_scale={learning_rate_scale}"] if learning_rate_scale is not None else []
    paths += [f"live.{path}" for path in spec_fields.apply(job.live, settings)]
    if prompt:
        job.live.sample.prompts.extend(prompt)
        paths += ["live.sample.prompt", "live.sample.prompts"]
    paths += [f"live.{key}" for key in as_planned or []]
    if not paths:
        raise typer.BadParameter("say what to change, such as --priority, --title, --timeout or --learning-rate-scale")
    request = pb.UpdateJobRequest(job=job)
    request.update_mask.paths.extend(paths)
    with options.connected(context) as client:
        tell(client.trainer.UpdateJob(request), as_json=as_json)


def fork(
    context: typer.Context,
    name: Name,
    *,
    step: Annotated[int | None, typer.Option(min=0, help="A kept checkpoint; the newest unless said.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="What differs: `--set steps=2000`, any field of TrainSpec.", metavar="KEY=VALUE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Creates a job that goes on from a checkpoint of another, with some of its spec changed.

    Example: `octavo jobs fork j-1 --step 1200 --set optimizer.matrix_learning_rate=0.01`
    """
    request = pb.ForkJobRequest(name=short_names.job(name), step=step)
    request.update_mask.paths.extend(spec_fields.apply(request.train, set_ or []))
    with options.connected(context) as client:
        job = client.trainer.ForkJob(request)
    tell(job, as_json=as_json)
    if not as_json:
        screen.stderr().print(f"`octavo jobs watch {wording.bare(job.name)}` follows it")


def tell(job: pb.Job, *, as_json: bool) -> None:
    """Says in which state a job is."""
    if as_json:
        screen.print_json(job)
    else:
        screen.stdout().print(f"{job.name} is {state_word(job.state)}")
