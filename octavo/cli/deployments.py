"""`octavo deployments …`: what should be served, and how far it is."""

import time
from typing import Annotated

import typer
from rich.text import Text

from octavo.cli import options, paging, screen, short_names, spec_fields, wording
from octavo.cli.options import AsJson, Limit, Yes
from octavo.client import Client
from octavo.v1 import deployments_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="What should be served: versions, their weights and precisions.")

Name = Annotated[str, typer.Argument(help="`poet` or `deployments/poet`.", metavar="DEPLOYMENT")]

POLL_S = 0.2
_SETTLED = (pb.DEPLOYMENT_STATE_READY, pb.DEPLOYMENT_STATE_FAILED)
_STYLES = {pb.DEPLOYMENT_STATE_READY: "bold green", pb.DEPLOYMENT_STATE_FAILED: "bold red"}


@app.command("list")
def list_deployments(context: typer.Context, limit: Limit = 100, as_json: AsJson = False) -> None:
    """Lists the deployments.

    Example: `octavo deployments list`
    """
    with options.connected(context) as client:
        response = paging.gather(client.deployments.ListDeployments, pb.ListDeploymentsRequest(), "deployments", limit)
    if as_json:
        screen.print_json(response)
        return
    rows: list[list[screen.Cell]] = [
        [
            Text(wording.bare(deployment.name), style="bold"),
            state_text(deployment.state),
            _targets(deployment),
            str(deployment.revision),
            wording.ago(deployment.update_time),
        ]
        for deployment in response.deployments
    ]
    columns = ["deployment", "state", "serves", ">revision", "changed"]
    screen.print_table(columns, rows, empty="nothing is deployed; `octavo deployments create NAME VERSION` does")


@app.command()
def create(
    context: typer.Context,
    name: Name,
    version: Annotated[str, typer.Argument(help="`poet/3`, or `poet@champion` to follow an alias.", metavar="VERSION")],
    *,
    precision: Annotated[str, typer.Option(help="fp32, int8, …; unless said, the server's choice.")] = "",
    on_demand: Annotated[
        bool, typer.Option("--on-demand", help="Held in memory only while it is used; its next request loads it again.")
    ] = False,
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for READY; 0 does not wait.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Serves a version under a name, or changes what that name serves; waits until it answers.

    Example: `octavo deployments create poet poet@champion --precision int8`
    """
    target = pb.DeploymentTarget(version=_version(version), on_demand=on_demand)
    if precision:
        field = pb.DeploymentTarget.DESCRIPTOR.fields_by_name["precision"]
        target.precision = pb.Precision.Value(spec_fields.enum_value(field, precision))
    deployment = pb.Deployment(name=short_names.deployment(name), targets=[target])
    request = pb.UpdateDeploymentRequest(deployment=deployment, allow_missing=True)
    request.update_mask.paths.append("targets")
    with options.connected(context) as client:
        made = client.deployments.UpdateDeployment(request)
        if wait_s:
            made = wait_until_settled(client, made, wait_s)
    _show(made, as_json=as_json)
    is_failed = made.state == pb.DEPLOYMENT_STATE_FAILED or (wait_s and made.state != pb.DEPLOYMENT_STATE_READY)
    raise typer.Exit(1 if is_failed else 0)


@app.command()
def show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Shows a deployment: what is wanted, and what its servers report.

    Example: `octavo deployments show poet`
    """
    with options.connected(context) as client:
        deployment = client.deployments.GetDeployment(pb.GetDeploymentRequest(name=short_names.deployment(name)))
    _show(deployment, as_json=as_json)


@app.command()
def rollback(
    context: typer.Context,
    name: Name,
    revision: Annotated[int, typer.Option(min=0, help="The revision to return to; 0 is the one before.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Returns to what was served before.

    Example: `octavo deployments rollback poet`
    """
    request = pb.RollbackRequest(name=short_names.deployment(name), revision=revision)
    with options.connected(context) as client:
        deployment = client.deployments.Rollback(request)
    _show(deployment, as_json=as_json)


@app.command()
def delete(context: typer.Context, name: Name, yes: Yes = False) -> None:
    """Stops serving; requests under way are finished.

    Example: `octavo deployments delete poet --yes`
    """
    full = short_names.deployment(name)
    options.confirm(f"Stop serving {full}?", yes=yes)
    with options.connected(context) as client:
        client.deployments.DeleteDeployment(pb.DeleteDeploymentRequest(name=full))
    screen.stderr().print(f"deleted {full}")


def wait_until_settled(client: Client, deployment: pb.Deployment, timeout_s: float) -> pb.Deployment:
    """The deployment once its present revision is READY or FAILED, or as it is after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    console = screen.stderr()
    with console.status(f"waiting for {deployment.name} …"):
        while deployment.state not in _SETTLED and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
            deployment = client.deployments.GetDeployment(pb.GetDeploymentRequest(name=deployment.name))
    return deployment


def state_text(state: pb.DeploymentState.ValueType) -> Text:
    """A state in its colour."""
    return Text(
        wording.enum_word(pb.DeploymentState.Name(state), "DEPLOYMENT_STATE_"), style=_STYLES.get(state, "yellow")
    )


def _version(text: str) -> str:
    """A target names a version or an alias; a model alone would move with every new version."""
    full = short_names.version(text)
    if "@" not in full and "/versions/" not in full:
        raise typer.BadParameter(
            f"{text} names no version: write {text}/3 for one, or {text}@champion to follow an alias"
        )
    return full


def _targets(deployment: pb.Deployment) -> str:
    parts = []
    for target in deployment.targets:
        followed = wording.compact(target.version)
        resolved = wording.compact(target.resolved_version)
        words = followed if followed == resolved or not resolved else f"{followed} -> {resolved}"
        precision = wording.enum_word(pb.Precision.Name(target.precision), "PRECISION_") if target.precision else ""
        weight = f"weight {target.weight}" if len(deployment.targets) > 1 else ""
        held = "on demand" if target.on_demand else ""
        parts.append(" ".join(part for part in (words, precision, weight, held) if part))
    return ", ".join(parts)


def _show(deployment: pb.Deployment, *, as_json: bool) -> None:
    if as_json:
        screen.print_json(deployment)
        return
    facts: list[tuple[str, screen.Cell]] = [
        ("deployment", Text(deployment.name, style="bold")),
        ("state", state_text(deployment.state)),
        ("serves", _targets(deployment)),
        ("revision", str(deployment.revision)),
        ("description", deployment.description),
    ]
    for status in deployment.statuses:
        serving = ", ".join(wording.compact(version) for version in status.serving_versions)
        facts.append(
            ("server", Text.assemble(status.server, "  ", state_text(status.state), f"  {serving}  {status.message}"))
        )
    screen.print_facts(facts)
