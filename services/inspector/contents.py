"""The contents of one artifact for one question: every file's format and table of tensors, each parsed at most once.

Reads headers only. Everything here runs in a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from octavo.errors import FailedPrecondition, InvalidArgument, NotFound
from octavo.v1 import inspector_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.inspector import external_data, file_formats
from services.inspector.artifacts import Artifact, ArtifactFile
from services.inspector.element_types import FLOATS
from services.inspector.onnx_graph import Initializer, OnnxGraph, read_graph
from services.inspector.reader import Budget, Reader, Source
from services.inspector.roles import block_of, role_of
from services.inspector.safetensors_header import SafetensorsHeader, StoredTensor, read_header

WEIGHTS: Final = "model.safetensors"

# Roles whose numbers are not trained.
_UNTRAINED: Final = frozenset({pb.TENSOR_ROLE_BUFFER, pb.TENSOR_ROLE_QUANTIZATION})
# Integers that may be quantised weights; wider ones are indices and shapes.
_NARROW: Final = frozenset(
    {pb.TENSOR_TYPE_INT4, pb.TENSOR_TYPE_UINT4, pb.TENSOR_TYPE_INT8, pb.TENSOR_TYPE_UINT8, pb.TENSOR_TYPE_OTHER}
)


class Contents:
    """One artifact, opened. `open_source` gives the bytes of a file; `budget` bounds what is fetched in all."""

    def __init__(self, artifact: Artifact, open_source: Callable[[ArtifactFile], Source], budget: Budget) -> None:
        self.artifact = artifact
        self.budget = budget
        self._open_source = open_source
        self._readers: dict[str, Reader] = {}
        self._formats: dict[str, pb.FileFormat.ValueType] = {}
        self._headers: dict[str, SafetensorsHeader] = {}
        self._graphs: dict[str, OnnxGraph] = {}

    def reader(self, path: str) -> Reader:
        """The bytes of a file; NotFound when the artifact has none of this path."""
        if path not in self._readers:
            self._readers[path] = Reader(self._open_source(self.artifact.file(path)), self.budget)
        return self._readers[path]

    def format(self, path: str) -> pb.FileFormat.ValueType:
        if path not in self._formats:
            self._formats[path] = file_formats.detect(self.reader(path), path)
        return self._formats[path]

    def header(self, path: str) -> SafetensorsHeader:
        """The header of a safetensors file; InvalidArgument when it breaks the format."""
        if path not in self._headers:
            self._headers[path] = read_header(self.reader(path))
        return self._headers[path]

    def graph(self, path: str) -> OnnxGraph:
        """The graph of an ONNX file; InvalidArgument when it breaks the format."""
        if path not in self._graphs:
            self._graphs[path] = read_graph(self.reader(path))
        return self._graphs[path]

    def tensor_paths(self) -> list[str]:
        """The files whose tensors can be listed, in the order of the manifest."""
        return [file.path for file in self.artifact.files if self.format(file.path) in _WITH_TENSORS]

    def external_paths(self) -> set[str]:
        """The files that sound graphs of the artifact point into."""
        paths = set()
        for file in self.artifact.files:
            if self.format(file.path) == pb.FILE_FORMAT_ONNX:
                with suppress(InvalidArgument):
                    locations = {item.location for item in self.graph(file.path).initializers if item.location}
                    paths |= {external_data.locate(self.artifact, file.path, text)[0] for text in locations}
        return paths - {""}

    def weights_path(self) -> str:
        """The file with the trained weights: model.safetensors, else the largest with tensors; NotFound if none."""
        if self.artifact.find(WEIGHTS) is not None:
            return WEIGHTS
        paths = self.tensor_paths()
        if not paths:
            raise NotFound(
                Reason.REASON_FILE_NOT_FOUND,
                f"{self.artifact.name} has no file with tensors that can be read here: safetensors or ONNX",
                artifact=self.artifact.name,
            )
        rank = {pb.FILE_FORMAT_SAFETENSORS: 1, pb.FILE_FORMAT_ONNX: 0}
        return max(paths, key=lambda path: (rank[self.format(path)], self.artifact.file(path).size_bytes))

    def tensors(self, path: str) -> list[pb.TensorDescription]:
        """The tensors of a file in the order of their bytes; FailedPrecondition for formats without a table."""
        kind = self.format(path)
        if kind == pb.FILE_FORMAT_SAFETENSORS:
            return self._stored(path)
        if kind == pb.FILE_FORMAT_ONNX:
            return self._initializers(path)
        name = pb.FileFormat.Name(kind).removeprefix("FILE_FORMAT_")
        raise FailedPrecondition(
            Reason.REASON_FORMAT_NOT_SUPPORTED,
            f"{path or self.artifact.name} is {name}; tensors are listed of SAFETENSORS and ONNX",
            path=path,
            format=name,
        )

    def tensors_by_offset(self, path: str) -> Mapping[int, StoredTensor]:
        """The tensors of a safetensors file by their first byte; empty for other files."""
        if not path or self.format(path) != pb.FILE_FORMAT_SAFETENSORS:
            return {}
        return {tensor.offset: tensor for tensor in self.header(path).tensors if tensor.size_bytes}

    def parameter_count(self, path: str, tensors: Iterable[pb.TensorDescription]) -> int:
        """Trained numbers among the tensors of a file; what shares bytes or a digest counts once."""
        packed = self.graph(path).input_roles.packed_counts if self.format(path) == pb.FILE_FORMAT_ONNX else {}
        unique = {identity(tensor): tensor for tensor in tensors if is_trained(tensor)}
        return sum(packed.get(tensor.name, tensor.element_count) for tensor in unique.values())

    def _stored(self, path: str) -> list[pb.TensorDescription]:
        digests = self.artifact.tensor_digests if path == WEIGHTS else {}
        first: dict[str, str] = {}
        described = []
        for tensor in self.header(path).tensors:
            description = _describe(tensor.name, path, tensor)
            description.offset_bytes = tensor.offset
            description.digest = digests.get(tensor.name, "")
            owner = first.setdefault(description.digest or tensor.name, tensor.name)
            description.tied_to = owner if owner != tensor.name else ""
            described.append(description)
        return described

    def _initializers(self, path: str) -> list[pb.TensorDescription]:
        graph = self.graph(path)
        described = [self._initializer(path, graph, initializer) for initializer in graph.initializers]
        return sorted(described, key=lambda tensor: (tensor.data_path, tensor.offset_bytes, tensor.name))

    def _initializer(self, path: str, graph: OnnxGraph, initializer: Initializer) -> pb.TensorDescription:
        description = _describe(initializer.name, path, initializer)
        if initializer.offset is not None:
            description.offset_bytes = initializer.offset
        matched = None
        if initializer.location is not None:
            data_path, _ = external_data.locate(self.artifact, path, initializer.location)
            description.data_path = data_path
            matched = external_data.matching_tensor(initializer, self.tensors_by_offset(data_path))
            if not data_path:
                description.ClearField("offset_bytes")
        if matched is not None:
            description.tied_to = matched.name
            description.role = role_of(matched.name)
            description.digest = self.artifact.tensor_digests.get(matched.name, "") if data_path == WEIGHTS else ""
            _set_block(description, matched.name)
        description.role = graph.input_roles.roles.get(initializer.name, description.role)
        if description.role == pb.TENSOR_ROLE_OTHER and not initializer.shape:
            description.role = pb.TENSOR_ROLE_BUFFER
        return description


_WITH_TENSORS: Final = frozenset({pb.FILE_FORMAT_SAFETENSORS, pb.FILE_FORMAT_ONNX})


def is_trained(tensor: pb.TensorDescription) -> bool:
    """Whether the tensor holds trained numbers, as far as its role, type and shape tell."""
    if tensor.role in _UNTRAINED:
        return False
    return tensor.type in FLOATS or (tensor.type in _NARROW and len(tensor.shape) > 1)


def identity(tensor: pb.TensorDescription) -> tuple[str, str, int]:
    """Equal for tensors that are the same bytes: by digest, by place, or else by name."""
    if tensor.digest:
        return ("", tensor.digest, 0)
    if tensor.HasField("offset_bytes") and tensor.size_bytes:
        return (tensor.data_path or tensor.path, "", tensor.offset_bytes)
    return (tensor.path, tensor.name, -1)


def _describe(name: str, path: str, tensor: StoredTensor | Initializer) -> pb.TensorDescription:
    description = pb.TensorDescription(
        name=name,
        path=path,
        type=tensor.type.kind,
        shape=tensor.shape,
        element_count=tensor.element_count,
        size_bytes=tensor.size_bytes,
        role=role_of(name),
    )
    _set_block(description, name)
    return description


def _set_block(description: pb.TensorDescription, name: str) -> None:
    block = block_of(name)
    if block is not None:
        description.block = block
