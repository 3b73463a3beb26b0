"""`octavo train DATASET --model NAME`: from a dataset to a proven version, followed as it happens."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import config_file, short_names, spec_fields, submission, wording
from octavo.cli.durations import duration
from octavo.cli.options import AsJson
from octavo.v1 import trainer_pb2 as pb


class Family(StrEnum):
    """Layouts of models."""

    GPT2 = "gpt2"
    LLAMA = "llama"
    QWEN3 = "qwen3"


class Tokenizer(StrEnum):
    """How text becomes tokens."""

    CHAR = "char"
    BPE = "bpe"


TOKENIZERS = {Tokenizer.CHAR: pb.TOKENIZER_KIND_CHARACTER, Tokenizer.BPE: pb.TOKENIZER_KIND_BYTE_BPE}


Config = Annotated[
    Path | None,
    typer.Option(help="A YAML file with fields of TrainSpec; options go before it.", exists=True, dir_okay=False),
]
Precisions = Annotated[list[str] | None, typer.Option("--export-precision", help="Export in int8, int4, … too.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any field of TrainSpec: `--set optimizer.learning_rate=0.002`.", metavar="KEY=VALUE"),
]


def train(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="What to learn from: `tiny` or `tiny/2`.")] = "",
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="The model that gets the new version: `poet`.")] = "",
    config: Config = None,
    size: Annotated[int | None, typer.Option(min=1, max=48, help="The one dial: depth; the rest follows.")] = None,
    family: Annotated[Family | None, typer.Option(help="Layout of the model; qwen3 unless said.")] = None,
    time_budget: Annotated[str | None, typer.Option(help="Stop after this time: 60s, 5min.", metavar="TIME")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many optimizer steps.")] = None,
    tokenizer: Annotated[Tokenizer | None, typer.Option(help="Characters, or byte-level BPE.")] = None,
    vocab_size: Annotated[int | None, typer.Option(min=257, help="Entries of the BPE vocabulary.")] = None,
    prompt: Annotated[str, typer.Option(help="What the samples during training go on from.")] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is random.")] = None,
    base: Annotated[str, typer.Option(help="Fine-tune this version: `poet/3`.", metavar="VERSION")] = "",
    alias: Annotated[list[str] | None, typer.Option(help="Alias to move to the new version; repeatable.")] = None,
    precision: Precisions = None,
    deploy: Annotated[bool, typer.Option("--deploy/--no-deploy", help="Serve the new version once proven.")] = False,
    set_: Settings = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher runs first.")] = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it comes to; nothing runs.")] = False,
    is_detached: Annotated[bool, typer.Option("--detach/--follow", help="Come back at once, or watch it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Trains a model on a dataset, proves its export and registers it as a new version.

    The job lives in the trainer: Ctrl-C stops the watching, not the work.

    Examples:

    `octavo train tiny --model poet --time-budget 60s --deploy`

    `octavo train tiny --model poet --size 6 --tokenizer bpe --plan`

    `octavo train tiny --model poet --steps 500 --set heads=8 --set dropout=0.1 --detach`

    `octavo train --config poet.yaml --seed 2`
    """
    spec = _begun(config, dataset=dataset, model=model)
    spec.MergeFrom(pb.TrainSpec(size=size, seed=seed, aliases=alias, export_precisions=precision))
    _apply_text(spec, tokenizer=tokenizer, vocab_size=vocab_size, prompt=prompt)
    if deploy:
        spec.deployment = f"deployments/{wording.bare(spec.model)}"
    _apply_origin(spec, base=base, family=family)
    _apply_end(spec, time_budget=time_budget, steps=steps)
    spec_fields.apply(spec, set_ or [])
    submission.carry_out(
        context,
        pb.Job(train=spec, priority=priority),
        deployment=spec.deployment,
        hint=_how_to_go_on(spec),
        is_planned=plan,
        is_detached=is_detached,
        as_json=as_json,
    )


def _begun(config: Path | None, *, dataset: str, model: str) -> pb.TrainSpec:
    """The spec of a file, or an empty one, with the names that were given. Raises typer.BadParameter without them."""
    spec = config_file.read(config) if config else pb.TrainSpec()
    if dataset:
        spec.dataset = short_names.dataset(dataset)
    if model:
        spec.model = short_names.model(model)
    for name, value in (("DATASET", spec.dataset), ("--model", spec.model)):
        if not value:
            raise typer.BadParameter(f"{name} is missing; give it, or a --config that names it")
    return spec


def _apply_text(spec: pb.TrainSpec, *, tokenizer: Tokenizer | None, vocab_size: int | None, prompt: str) -> None:
    if tokenizer:
        spec.tokenizer.kind = TOKENIZERS[tokenizer]
    if vocab_size:
        spec.tokenizer.vocab_size = vocab_size
    if prompt:
        spec.sample.prompt = prompt


def _apply_origin(spec: pb.TrainSpec, *, base: str, family: Family | None) -> None:
    if base:
        spec.base_version = short_names.version(base)
    if family:
        spec.family = pb.ModelFamily.Value(f"MODEL_FAMILY_{family.name}")


def _apply_end(spec: pb.TrainSpec, *, time_budget: str | None, steps: int | None) -> None:
    if time_budget and steps:
        raise typer.BadParameter("--time-budget and --steps exclude one another")
    if time_budget:
        spec.time_budget.CopyFrom(duration(time_budget))
    if steps:
        spec.steps = steps


def _how_to_go_on(spec: pb.TrainSpec) -> str:
    name = wording.bare(spec.model)
    if spec.deployment:
        return f'now: `octavo generate {name} "…"`'
    return f"now: `octavo deployments create {name} {name}`, then `octavo generate {name} …`"
