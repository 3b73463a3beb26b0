"""`octavo models …`: names, their immutable versions, and the aliases that point at them."""

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format
from rich.text import Text

from octavo.cli import options, paging, screen, short_names, transfer, wording
from octavo.cli.failure import Refusal
from octavo.cli.options import AsJson, Limit
from octavo.cli.served import served
from octavo.v1 import registry_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Models, their immutable versions, and the aliases that point at them.")

app.command()(served)

Model = Annotated[str, typer.Argument(help="`poet` or `models/poet`.", metavar="MODEL")]
Reference = Annotated[
    str, typer.Argument(help="`poet` (newest), `poet@champion`, `poet/3` or a full name.", metavar="VERSION")
]


@app.command("list")
def list_models(context: typer.Context, limit: Limit = 100, as_json: AsJson = False) -> None:
    """Lists the models.

    Example: `octavo models list`
    """
    with options.connected(context) as client:
        response = paging.gather(client.registry.ListModels, pb.ListModelsRequest(), "models", limit)
    if as_json:
        screen.print_json(response)
        return
    rows: list[list[screen.Cell]] = [
        [
            Text(wording.bare(model.name), style="bold"),
            str(model.version_count),
            _aliases(model),
            wording.one_line(model.description, 60),
            wording.ago(model.update_time),
        ]
        for model in response.models
    ]
    columns = ["model", ">versions", "aliases", "description", "changed"]
    screen.print_table(columns, rows, empty="no models yet; `octavo train DATASET --model NAME` makes one")


@app.command()
def show(context: typer.Context, name: Model, as_json: AsJson = False) -> None:
    """Shows a model with its aliases and newest versions.

    Example: `octavo models show poet`
    """
    with options.connected(context) as client:
        model = client.registry.GetModel(pb.GetModelRequest(name=short_names.model(name)))
        if as_json:
            screen.print_json(model)
            return
        request = pb.ListVersionsRequest(parent=model.name)
        response = paging.gather(client.registry.ListVersions, request, "versions", 10)
    screen.print_facts(
        [
            ("model", Text(model.name, style="bold")),
            ("description", model.description),
            ("labels", ", ".join(f"{key}={value}" for key, value in sorted(model.labels.items()))),
            ("aliases", _aliases(model)),
            ("made", wording.ago(model.create_time)),
        ]
    )
    _print_versions(list(response.versions))


@app.command()
def versions(context: typer.Context, name: Model, limit: Limit = 50, as_json: AsJson = False) -> None:
    """Lists the versions of a model, newest first.

    Example: `octavo models versions poet`
    """
    with options.connected(context) as client:
        request = pb.ListVersionsRequest(parent=short_names.model(name))
        response = paging.gather(client.registry.ListVersions, request, "versions", limit)
    if as_json:
        screen.print_json(response)
    else:
        _print_versions(list(response.versions))


@app.command()
def resolve(context: typer.Context, reference: Reference, as_json: AsJson = False) -> None:
    """Shows the version that a reference means now: files, metrics, lineage, proof.

    Example: `octavo models resolve poet@champion`
    """
    with options.connected(context) as client:
        version = client.registry.ResolveVersion(pb.ResolveVersionRequest(reference=short_names.version(reference)))
    if as_json:
        screen.print_json(version)
        return
    screen.print_facts(version_facts(version))
    rows = [[file.path, wording.size(file.size_bytes), file.blob.removeprefix("blobs/")[:26]] for file in version.files]
    screen.print_table(["file", ">size", "digest"], rows, empty="no files")


@app.command()
def alias(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="`poet@champion`.", metavar="MODEL@ALIAS")],
    version: Annotated[str, typer.Argument(help="`poet/3`; left out with --delete.", metavar="[VERSION]")] = "",
    delete: Annotated[bool, typer.Option("--delete", help="Remove the alias.")] = False,
    as_json: AsJson = False,
) -> None:
    """Points an alias at a version, or removes it.

    Examples: `octavo models alias poet@champion poet/3`, `octavo models alias poet@champion --delete`
    """
    model, at, word = short_names.model(name).partition("@")
    if not at or not word or bool(version) == delete:
        raise typer.BadParameter(
            "write MODEL@ALIAS and a VERSION, such as poet@champion poet/3; or --delete without one"
        )
    full = f"{model}/aliases/{word}"
    with options.connected(context) as client:
        if delete:
            client.registry.DeleteAlias(pb.DeleteAliasRequest(name=full))
            screen.stderr().print(f"deleted {full}")
            return
        wanted = client.registry.ResolveVersion(pb.ResolveVersionRequest(reference=short_names.version(version)))
        moved = client.registry.SetAlias(pb.SetAliasRequest(name=full, version=wanted.name))
    if as_json:
        screen.print_json(moved)
    else:
        screen.stdout().print(f"{wording.compact(model)}@{word} -> {moved.version}")


@app.command()
def compare(
    context: typer.Context,
    references: Annotated[list[str], typer.Argument(help="Two to eight versions.", metavar="VERSION…")],
    as_json: AsJson = False,
) -> None:
    """Holds versions side by side; the first is what the others are held against.

    Example: `octavo models compare poet/2 poet/3`
    """
    request = pb.CompareVersionsRequest(references=[short_names.version(reference) for reference in references])
    with options.connected(context) as client:
        response = client.registry.CompareVersions(request)
    if as_json:
        screen.print_json(response)
        return
    names = sorted({name for version in response.versions for name in version.metrics})
    rows = [
        [name, *(f"{version.metrics[name]:.4g}" if name in version.metrics else "" for version in response.versions)]
        for name in names
    ]
    equal = [str(difference.equal_tensor_count) for difference in response.differences[1:]]
    rows.append(["equal tensors", "", *equal])
    columns = ["metric", *(f">{wording.compact(version.name)}" for version in response.versions)]
    screen.print_table(columns, rows, empty="nothing to compare")


@app.command()
def register(
    context: typer.Context,
    name: Model,
    directory: Annotated[
        Path, typer.Argument(help="Its files: a bundle, or any ONNX graph.", exists=True, file_okay=False)
    ],
    description: Annotated[str, typer.Option(help="What it is, for people.")] = "",
    as_json: AsJson = False,
) -> None:
    """Makes the files of a directory the next version of a model; an ONNX graph is served as `model.onnx`.

    Example: `octavo models register classifier ./exported`
    """
    from octavo.formats.manifest import Manifest  # brings NumPy, which no other command waits for

    version = pb.Version(description=description)
    manifest = Manifest.of_directory(directory)
    with options.connected(context) as client:
        for file in manifest.files:
            transfer.upload(client, directory / file.path)
            version.files.add(path=file.path, blob=f"blobs/{file.digest}", size_bytes=file.size_bytes)
        for tensor, digest in manifest.tensors.items():
            version.tensors.add(name=tensor, digest=digest)
        request = pb.CreateVersionRequest(parent=short_names.model(name), version=version)
        version = client.registry.CreateVersion(request)
    if as_json:
        screen.print_json(version)
    else:
        screen.print_facts(version_facts(version))


@app.command()
def download(
    context: typer.Context,
    reference: Reference,
    directory: Annotated[
        Path, typer.Argument(help="Where to; made when it is not there.", metavar="[DIRECTORY]")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Downloads the files of a version, each verified by its digest, in Hugging Face layout.

    Example: `octavo models download poet@champion ./poet`
    """
    with options.connected(context) as client:
        version = client.registry.ResolveVersion(pb.ResolveVersionRequest(reference=short_names.version(reference)))
        targets = [inside(directory, file.path) for file in version.files]
        for file, target in zip(version.files, targets, strict=True):
            transfer.download(client, file.blob, file.size_bytes, target)
    if as_json:
        screen.print_json(version)
    else:
        what = f"{len(version.files)} files, {wording.size(version.size_bytes)}"
        screen.stdout().print(f"{version.name}: {what} in {directory.resolve()}", soft_wrap=True)


def inside(directory: Path, path: str) -> Path:
    """Where a version's file goes. Raises Refusal for a path that leads out, whoever answered as the registry."""
    target = directory / path
    if not target.resolve().is_relative_to(directory.resolve()) or target.resolve() == directory.resolve():
        raise Refusal(f"the version has a file {path!r}, which would lie outside {directory}; nothing was downloaded")
    return target


def version_facts(version: pb.Version) -> list[tuple[str, screen.Cell]]:
    """What is known about a version, for a grid."""
    lineage = version.lineage
    data = ", ".join(wording.compact(dataset.dataset) for dataset in lineage.datasets)
    return [
        ("version", Text(version.name, style="bold")),
        ("aliases", ", ".join(version.aliases)),
        ("model", f"{version.family}, {wording.count(version.parameter_count)} parameters"),
        ("size", f"{wording.size(version.size_bytes)} in {len(version.files)} files"),
        ("metrics", ", ".join(f"{name} {value:.4g}" for name, value in sorted(version.metrics.items()))),
        ("lineage", f"{lineage.job} at step {lineage.step:,}, from {data}, seed {lineage.seed}" if lineage.job else ""),
        ("parent", lineage.parent_version),
        ("proof", proof_words(version)),
        ("manifest", version.manifest_digest),
        ("made", wording.ago(version.create_time)),
    ]


def proof_words(version: pb.Version) -> str:
    """The proof that what is served is what was trained, in a sentence; empty for a version without one."""
    if not version.HasField("parity"):
        return ""
    proof = json_format.MessageToDict(version.parity)
    if not {"precision", "largest_difference", "tolerance", "positions", "greedy_tokens"} <= set(proof):
        return wording.one_line(json_format.MessageToJson(version.parity, indent=None), 200)
    return (
        f"{proof['precision']} logits within {proof['largest_difference']:.1e} of the checkpoint's "
        f"(tolerance {proof['tolerance']:.0e}) at {proof['positions']:,.0f} positions, "
        f"{proof['greedy_tokens']:,.0f} greedy tokens the same"
    )


def _print_versions(found: list[pb.Version]) -> None:
    rows: list[list[screen.Cell]] = [
        [
            Text(wording.compact(version.name), style="bold"),
            version.family,
            wording.count(version.parameter_count),
            wording.size(version.size_bytes),
            f"{version.metrics['validation_loss']:.4f}" if "validation_loss" in version.metrics else "",
            ", ".join(version.aliases),
            wording.bare(version.lineage.job),
            wording.ago(version.create_time),
        ]
        for version in found
    ]
    columns = ["version", "family", ">parameters", ">size", ">validation", "aliases", "job", "made"]
    screen.print_table(columns, rows, empty="no versions yet")


def _aliases(model: pb.Model) -> str:
    return ", ".join(f"{wording.bare(alias.name)} -> {wording.bare(alias.version)}" for alias in model.aliases)
