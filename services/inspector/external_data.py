"""Judges where an ONNX graph's external data would be read from. Follows no path: it only compares text and sizes.

Knows nothing of how tensors are stored inside the files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from octavo.v1 import inspector_pb2 as pb
from services.inspector.artifacts import Artifact
from services.inspector.onnx_graph import Initializer
from services.inspector.safetensors_header import StoredTensor

State = pb.ExternalDataState

_DRIVE: Final = re.compile(r"^[A-Za-z]:|[\\\0]|^~|^[a-z]+://")


def locate(artifact: Artifact, graph_path: str, location: str) -> tuple[str, pb.ExternalDataState.ValueType]:
    """The path in the artifact that a location means, and how it stands to the artifact.

    CVE-2022-25882, CVE-2024-27318 and CVE-2025-51480 were all locations that left the model's directory.
    """
    if _DRIVE.search(location) or location.startswith("/") or ".." in location.split("/"):
        return "", State.EXTERNAL_DATA_STATE_ESCAPES
    if artifact.is_blob:
        return "", State.EXTERNAL_DATA_STATE_UNRESOLVED
    path = str(PurePosixPath(graph_path).parent / location)
    if artifact.find(path) is None:
        return "", State.EXTERNAL_DATA_STATE_MISSING
    return path, State.EXTERNAL_DATA_STATE_CONTAINED


def matching_tensor(initializer: Initializer, tensors: Mapping[int, StoredTensor]) -> StoredTensor | None:
    """The tensor that the initializer is, by offset, length and shape; `tensors` by offset."""
    tensor = tensors.get(initializer.offset) if initializer.offset is not None else None
    if tensor is None or tensor.size_bytes != initializer.size_bytes or tensor.type != initializer.type:
        return None
    return tensor if tensor.shape == initializer.shape else None


def usage(
    artifact: Artifact,
    graph_path: str,
    initializers: Sequence[Initializer],
    tensors: Mapping[str, Mapping[int, StoredTensor]],
) -> list[pb.ExternalDataUsage]:
    """One entry for each location, in order of first use; `tensors` by path and offset."""
    groups: dict[str, list[Initializer]] = defaultdict(list)
    for initializer in initializers:
        if initializer.location is not None:
            groups[initializer.location].append(initializer)
    return [_group_usage(artifact, graph_path, location, group, tensors) for location, group in groups.items()]


def _group_usage(
    artifact: Artifact,
    graph_path: str,
    location: str,
    group: Sequence[Initializer],
    tensors: Mapping[str, Mapping[int, StoredTensor]],
) -> pb.ExternalDataUsage:
    path, state = locate(artifact, graph_path, location)
    file = artifact.find(path) if path else None
    if file is not None and any(_end(initializer) > file.size_bytes for initializer in group):
        state = State.EXTERNAL_DATA_STATE_OUT_OF_RANGE
    own = tensors.get(path, {})
    ranges = {(initializer.offset, initializer.size_bytes) for initializer in group}
    return pb.ExternalDataUsage(
        location=location,
        initializer_count=len(group),
        size_bytes=sum(size_bytes for _, size_bytes in ranges),
        state=state,
        matched_tensor_count=sum(matching_tensor(initializer, own) is not None for initializer in group),
    )


def _end(initializer: Initializer) -> int:
    length = max(initializer.size_bytes, initializer.stated_bytes or 0)
    return (initializer.offset or 0) + length
