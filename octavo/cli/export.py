"""`octavo export VERSION --precision int8`: a version in fewer bits, measured, followed as it happens."""

from typing import Annotated

import typer

from octavo.cli import short_names, submission, wording
from octavo.cli.options import AsJson
from octavo.v1 import trainer_pb2 as pb


def export(
    context: typer.Context,
    version: Annotated[
        str, typer.Argument(help="`poet` for its newest, `poet/3` or `poet@champion`.", metavar="VERSION")
    ],
    *,
    precision: Annotated[
        list[str], typer.Option("--precision", "-p", help="int8, int8_weights, int4, fp16 or bf16; repeatable.")
    ],
    dataset: Annotated[
        str, typer.Option(help="Text to calibrate on and to measure by; what it was trained on unless said.")
    ] = "",
    max_increase: Annotated[
        float | None,
        typer.Option("--max-perplexity-increase", help="How much worse it may be, as a fraction: 0.01 unless said."),
    ] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Alias to move to the new version; repeatable.")] = None,
    deploy: Annotated[str, typer.Option(help="Serve it under this name, in the first precision.", metavar="NAME")] = "",
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher runs first.")] = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it comes to; nothing runs.")] = False,
    is_detached: Annotated[bool, typer.Option("--detach/--follow", help="Come back at once, or watch it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Writes a version in fewer bits, as a new version of the same model that holds the old one too.

    Each precision is measured against fp32 on text the model has not learnt from; one that loses more than is allowed
    ends the job with its figures.

    Examples:

    `octavo export poet --precision int8 --deploy poet`

    `octavo export poet/3 --precision int8 --precision int4 --max-perplexity-increase 0.02`
    """
    spec = pb.ExportSpec(
        version=short_names.version(version),
        precisions=precision,
        aliases=alias or [],
        max_perplexity_increase=max_increase,
    )
    if dataset:
        spec.dataset = short_names.dataset(dataset)
    if deploy:
        spec.deployment = short_names.deployment(deploy)
    submission.carry_out(
        context,
        pb.Job(export=spec, priority=priority),
        deployment=spec.deployment,
        hint=_how_to_go_on(spec),
        is_planned=plan,
        is_detached=is_detached,
        as_json=as_json,
    )


def _how_to_go_on(spec: pb.ExportSpec) -> str:
    name = wording.bare(spec.version.partition("/versions/")[0].partition("@")[0])
    if spec.deployment:
        return f'now: `octavo generate {wording.bare(spec.deployment)} "…"`'
    return f"now: `octavo deployments create {name} {name} --precision {spec.precisions[0]}`"
