"""`octavo inspect ARTIFACT`: a model taken apart, read from its headers alone."""

from typing import Annotated

import typer
from rich.text import Text

from octavo.cli import options, paging, screen, short_names, wording
from octavo.cli.options import AsJson
from octavo.client import Client
from octavo.v1 import inspector_pb2 as pb
from octavo.v1 import registry_pb2

_SEVERITY_STYLES = {pb.FINDING_SEVERITY_ERROR: "bold red", pb.FINDING_SEVERITY_WARNING: "yellow"}


def inspect(
    context: typer.Context,
    artifact: Annotated[str, typer.Argument(help="`poet` (newest), `poet@champion`, `poet/3` or `sha256:…`.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    path: Annotated[str, typer.Option(help="One file of the version: `model.onnx`.")] = "",
    as_json: AsJson = False,
) -> None:
    """Shows what an artifact holds: files, anatomy, layers, findings. Nothing of it is ever executed.

    Examples: `octavo inspect poet`, `octavo inspect poet/3 --tensors --path model.safetensors`
    """
    with options.connected(context) as client:
        name = _resolved(client, short_names.artifact(artifact))
        if tensors:
            request = pb.ListTensorsRequest(artifact=name, path=path)
            listed = paging.gather(client.inspector.ListTensors, request, "tensors", 100_000)
            screen.print_json(listed) if as_json else _print_tensors(listed)
            return
        found = inspection(client, name, path)
    if as_json:
        screen.print_json(found)
    else:
        print_inspection(found)


def inspection(client: Client, artifact: str, path: str = "") -> pb.ArtifactInspection:
    """What the inspector says of an artifact."""
    return client.inspector.InspectArtifact(pb.InspectArtifactRequest(artifact=artifact, path=path))


def print_inspection(inspection: pb.ArtifactInspection, *, has_layers: bool = True) -> None:
    """The inspection as facts, layers, files and findings."""
    screen.print_facts(_facts(inspection))
    if has_layers and inspection.HasField("anatomy"):
        screen.stdout().print()
        rows = [_layer_row(layer) for layer in inspection.anatomy.layers]
        screen.print_table(["layer", "kind", ">parameters", ">size", ">operations/token"], rows, empty="no layers")
    screen.stdout().print()
    rows = [
        [file.path or wording.one_line(file.digest, 24), _format_word(file), wording.size(file.size_bytes), _what(file)]
        for file in inspection.files
    ]
    screen.print_table(["file", "format", ">size", "holds"], rows, empty="no files")
    print_findings(list(inspection.findings))


def print_findings(findings: list[pb.InspectionFinding]) -> None:
    """Findings, worst first, each with what to do about it."""
    for finding in findings:
        style = _SEVERITY_STYLES.get(finding.severity, "dim")
        severity = wording.enum_word(pb.FindingSeverity.Name(finding.severity), "FINDING_SEVERITY_")
        subject = f"{finding.subject}: " if finding.subject else ""
        screen.stdout().print(Text.assemble((f"{severity} ", style), subject, finding.message))
        if finding.advice:
            screen.stdout().print(Text.assemble(("  → ", style), finding.advice))


def _resolved(client: Client, name: str) -> str:
    """The inspector asks for an exact version; a model alone means its newest."""
    if name.startswith("models/") and "@" not in name and "/versions/" not in name:
        request = registry_pb2.ResolveVersionRequest(reference=name)
        return client.registry.ResolveVersion(request).name
    return name


def _facts(inspection: pb.ArtifactInspection) -> list[tuple[str, screen.Cell]]:
    facts: list[tuple[str, screen.Cell]] = [("artifact", Text(inspection.artifact, style="bold"))]
    if inspection.HasField("anatomy"):
        shape = inspection.anatomy
        heads = f"{shape.head_count} heads of {shape.head_size}"
        if shape.key_value_head_count != shape.head_count:
            heads += f" on {shape.key_value_head_count} of keys and values"
        tied = ", output tied to the embedding" if shape.has_tied_embeddings else ""
        facts += [
            ("family", f"{shape.family}, {shape.layer_count} blocks of width {shape.width}, {heads}"),
            ("vocabulary", f"{shape.vocabulary_size:,} entries{tied}"),
            ("context", f"{shape.context_length:,} tokens"),
            ("a token costs", f"{wording.count(shape.flops_per_token)} operations, {_cache(shape)} of cache"),
        ]
    types = ", ".join(f"{_type_word(use.type)} {wording.size(use.size_bytes)}" for use in inspection.bytes_by_type)
    return [
        *facts,
        (
            "parameters",
            f"{inspection.parameter_count:,} in {inspection.tensor_count} tensors of {inspection.weights_path}",
        ),
        ("types", types),
        ("size", wording.size(inspection.size_bytes)),
        ("read", f"{wording.size(inspection.read_bytes)} in {wording.lasting(wording.seconds(inspection.elapsed))}"),
    ]


def _cache(shape: pb.ModelAnatomy) -> str:
    return wording.size(shape.cache_bytes_per_token)


def _layer_row(layer: pb.ModelLayer) -> list[screen.Cell]:
    return [
        layer.name,
        Text(wording.enum_word(pb.LayerKind.Name(layer.kind), "LAYER_KIND_"), style="dim"),
        f"{layer.parameter_count:,}",
        wording.size(layer.size_bytes),
        wording.count(layer.flops_per_token) if layer.flops_per_token else "",
    ]


def _format_word(file: pb.FileInspection) -> str:
    return wording.enum_word(pb.FileFormat.Name(file.format), "FILE_FORMAT_")


def _type_word(tensor_type: pb.TensorType.ValueType) -> str:
    return wording.enum_word(pb.TensorType.Name(tensor_type), "TENSOR_TYPE_")


def _what(file: pb.FileInspection) -> str:
    if file.HasField("graph"):
        backed = " in model.safetensors" if file.graph.is_backed_by_safetensors else ""
        return f"{file.graph.node_count} nodes, {file.graph.initializer_count} weights{backed}"
    return f"{file.tensor_count} tensors, {file.parameter_count:,} parameters" if file.tensor_count else ""


def _print_tensors(listed: pb.ListTensorsResponse) -> None:
    rows: list[list[screen.Cell]] = [
        [
            tensor.name,
            _type_word(tensor.type),
            " x ".join(map(str, tensor.shape)) or "scalar",
            wording.size(tensor.size_bytes),
            Text(wording.enum_word(pb.TensorRole.Name(tensor.role), "TENSOR_ROLE_"), style="dim"),
            Text(tensor.path, style="dim"),
        ]
        for tensor in listed.tensors
    ]
    screen.print_table(["tensor", "type", "shape", ">size", "role", "file"], rows, empty="no tensors")
