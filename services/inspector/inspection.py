"""Answers what an artifact holds: every file, its tensors, the graph, the model's anatomy, and what is wrong.

Reads headers only; what is broken becomes a finding, so that one bad file does not hide the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from octavo.errors import InvalidArgument, OctavoError
from octavo.formats.architecture import Architecture
from octavo.v1 import inspector_pb2 as pb
from services.inspector import anatomy, findings, graph_summary
from services.inspector.artifacts import ArtifactFile
from services.inspector.configuration import CONFIG, read_config
from services.inspector.contents import Contents, identity

_FILES_LIMIT: Final = 1000
_METADATA_ENTRIES: Final = 256
_METADATA_CHARACTERS: Final = 4096

# Formats that run code when a library loads them.
_EXECUTABLE: Final = frozenset({pb.FILE_FORMAT_PICKLE, pb.FILE_FORMAT_PYTORCH_ZIP})


def inspect(contents: Contents, path: str) -> pb.ArtifactInspection:
    """The whole artifact, or one file of it when `path` is not empty."""
    artifact = contents.artifact
    files = [artifact.file(path)] if path else list(artifact.files[:_FILES_LIMIT])
    result = pb.ArtifactInspection(artifact=artifact.name, size_bytes=sum(file.size_bytes for file in files))
    result.files.extend(_inspect_file(contents, file) for file in files)
    _mark_external_data(contents, result)
    notes = [finding for file in result.files for finding in file.findings]
    if len(artifact.files) > _FILES_LIMIT and not path:
        notes.append(
            findings.info("files-left-out", "", f"only the first {_FILES_LIMIT} of {len(artifact.files)} files")
        )
    tensors = _add_weights(contents, result)
    if not path and not artifact.is_blob:
        notes.extend(_add_anatomy(contents, result, tensors))
    result.findings.extend(findings.ranked(notes))
    return result


def _inspect_file(contents: Contents, file: ArtifactFile) -> pb.FileInspection:
    result = pb.FileInspection(path=file.path, digest=file.digest, size_bytes=file.size_bytes)
    try:
        result.format = contents.format(file.path)
        _describe_file(contents, result)
    except InvalidArgument as error:
        result.findings.append(
            findings.error("malformed-file", file.path, error.message, "do not load it; write it again from its source")
        )
    return result


def _describe_file(contents: Contents, result: pb.FileInspection) -> None:
    if result.format in _EXECUTABLE:
        result.findings.append(
            findings.warning(
                "runs-code",
                result.path,
                "pickles run code when they are loaded",
                "ask for an audit before loading it; keep weights as safetensors",
            )
        )
    if result.format not in (pb.FILE_FORMAT_SAFETENSORS, pb.FILE_FORMAT_ONNX):
        return
    tensors = contents.tensors(result.path)
    result.tensor_count = len(tensors)
    result.parameter_count = contents.parameter_count(result.path, tensors)
    result.bytes_by_type.extend(_usage(tensors))
    if result.format == pb.FILE_FORMAT_SAFETENSORS:
        _add_metadata(result, contents.header(result.path).metadata)
        result.findings.extend(_stored_findings(result.path, tensors))
    else:
        _add_metadata(result, contents.graph(result.path).metadata)
        result.graph.CopyFrom(graph_summary.summarize(contents, result.path))
        result.findings.extend(graph_summary.judge(contents, result.path, result.graph))


def _add_metadata(result: pb.FileInspection, metadata: Mapping[str, str]) -> None:
    for key in sorted(metadata)[:_METADATA_ENTRIES]:
        result.metadata[key[:_METADATA_CHARACTERS]] = metadata[key][:_METADATA_CHARACTERS]


def _stored_findings(path: str, tensors: Sequence[pb.TensorDescription]) -> Iterator[pb.InspectionFinding]:
    askew = [
        tensor.name
        for tensor in tensors
        if tensor.element_count and tensor.offset_bytes % max(tensor.size_bytes // tensor.element_count, 1)
    ]
    if askew:
        yield findings.info(
            "tensors-unaligned",
            path,
            f"{len(askew)} tensors do not begin at a multiple of their element size, {askew[0]} first: they cannot "
            "be mapped into memory as they are",
        )
    empty = [tensor.name for tensor in tensors if not tensor.element_count]
    if empty:
        yield findings.info("tensors-empty", path, f"{len(empty)} tensors have no elements, {empty[0]} first")


def _usage(tensors: Iterable[pb.TensorDescription]) -> list[pb.TypeUsage]:
    """Bytes by type, largest first; shared bytes once."""
    unique = {identity(tensor): tensor for tensor in tensors}
    groups: dict[pb.TensorType.ValueType, list[pb.TensorDescription]] = defaultdict(list)
    for tensor in unique.values():
        groups[tensor.type].append(tensor)
    usages = [
        pb.TypeUsage(
            type=kind,
            tensor_count=len(group),
            element_count=sum(tensor.element_count for tensor in group),
            size_bytes=sum(tensor.size_bytes for tensor in group),
        )
        for kind, group in groups.items()
    ]
    return sorted(usages, key=lambda usage: -usage.size_bytes)


def _mark_external_data(contents: Contents, result: pb.ArtifactInspection) -> None:
    """A file of unknown content that a graph points into is its data."""
    pointed = contents.external_paths()
    for file in result.files:
        if file.path in pointed and file.format in (pb.FILE_FORMAT_UNKNOWN, pb.FILE_FORMAT_TEXT):
            file.format = pb.FILE_FORMAT_EXTERNAL_DATA


def _add_weights(contents: Contents, result: pb.ArtifactInspection) -> list[pb.TensorDescription]:
    """Fills in what is said of the weights; returns their tensors, empty when none can be read."""
    sound = [file for file in result.files if file.tensor_count]
    if not sound:
        return []
    path = sound[0].path if len(sound) == 1 else contents.weights_path()
    weights = next((file for file in sound if file.path == path), None)
    if weights is None:
        return []
    tensors = contents.tensors(path)
    result.weights_path = path
    result.parameter_count = weights.parameter_count
    result.tensor_count = weights.tensor_count
    result.bytes_by_type.extend(weights.bytes_by_type)
    result.ties.extend(_ties(tensors))
    return tensors


def _ties(tensors: Sequence[pb.TensorDescription]) -> Iterator[pb.TiedTensors]:
    groups: dict[tuple[str, str, int], list[pb.TensorDescription]] = defaultdict(list)
    for tensor in tensors:
        groups[identity(tensor)].append(tensor)
    for group in groups.values():
        if len(group) > 1:
            evidence = pb.TIE_EVIDENCE_EQUAL_DIGEST if group[0].digest else pb.TIE_EVIDENCE_SHARED_BYTES
            yield pb.TiedTensors(tensors=[tensor.name for tensor in group], evidence=evidence)


def _add_anatomy(
    contents: Contents, result: pb.ArtifactInspection, tensors: Sequence[pb.TensorDescription]
) -> Iterator[pb.InspectionFinding]:
    if contents.artifact.find(CONFIG) is None:
        yield findings.info("config-missing", "", "without a config.json the model's layers cannot be told")
        return
    try:
        config = read_config(contents)
        if "auto_map" in config:
            yield findings.warning(
                "remote-code",
                CONFIG,
                "auto_map asks the loader to import code that comes with the model",
                "load it with trust_remote_code off",
            )
        architecture = Architecture.from_config(config)
    except OctavoError as error:
        yield findings.warning(
            "config-unknown", CONFIG, error.message, "layers are shown for gpt2, llama and qwen3 only"
        )
        return
    result.anatomy.CopyFrom(anatomy.describe(architecture, tensors))
    if tensors:
        yield from anatomy.disagreements(architecture, tensors, result.weights_path)
        _add_configured_tie(architecture, result, tensors)


def _add_configured_tie(
    architecture: Architecture, result: pb.ArtifactInspection, tensors: Sequence[pb.TensorDescription]
) -> None:
    names = {tensor.role: tensor.name for tensor in tensors}
    embedding = names.get(pb.TENSOR_ROLE_TOKEN_EMBEDDING)
    if architecture.tie_embeddings and embedding and pb.TENSOR_ROLE_OUTPUT not in names:
        result.ties.add(tensors=[embedding, "lm_head.weight"], evidence=pb.TIE_EVIDENCE_CONFIGURATION)
