"""A job from its spec to its end: only planned, sent and left alone, or followed as it happens."""

import typer

from octavo.cli import deployments, follow, options, screen, wording
from octavo.cli.plan_view import plan_view
from octavo.v1 import deployments_pb2
from octavo.v1 import trainer_pb2 as pb

_READY_WITHIN_S = 60.0


def carry_out(
    context: typer.Context,
    job: pb.Job,
    *,
    deployment: str,
    hint: str,
    is_planned: bool,
    is_detached: bool,
    as_json: bool,
) -> None:
    """Does with a job what was asked for, and says `hint` where it went well. Ends the command with its exit code."""
    if is_planned:
        _plan(context, job, as_json=as_json)
    elif is_detached:
        _detach(context, job, as_json=as_json)
    else:
        code = _run(context, job, deployment=deployment, as_json=as_json)
        if code == 0 and not as_json:
            screen.stderr().print(hint)
        raise typer.Exit(code)


def _plan(context: typer.Context, job: pb.Job, *, as_json: bool) -> None:
    """Says what a job comes to; nothing runs."""
    with options.connected(context) as client:
        response = client.trainer.PlanJob(pb.PlanJobRequest(job=job))
    if as_json:
        screen.print_json(response.plan)
    else:
        screen.stdout().print(plan_view(response.plan))


def _detach(context: typer.Context, job: pb.Job, *, as_json: bool) -> None:
    """Creates a job and comes back at once."""
    with options.connected(context) as client:
        created = client.trainer.CreateJob(pb.CreateJobRequest(job=job))
    if as_json:
        screen.print_json(created)
        return
    screen.stdout().print(created.name)
    screen.stderr().print(f"`octavo jobs watch {wording.bare(created.name)}` follows it")


def _run(context: typer.Context, job: pb.Job, *, deployment: str, as_json: bool) -> int:
    """Creates a job and follows it to its end, and that of its deployment; answers with the exit code."""
    with options.connected(context) as client:
        created = client.trainer.CreateJob(pb.CreateJobRequest(job=job))
        if not as_json:
            screen.stderr().print(plan_view(created.plan))
        story = follow.follow(client, created, as_json=as_json)
        code = follow.conclude(story, as_json=as_json)
        if code == 0 and deployment:
            request = deployments_pb2.GetDeploymentRequest(name=deployment)
            deployments.wait_until_settled(client, client.deployments.GetDeployment(request), _READY_WITHIN_S)
    return code
