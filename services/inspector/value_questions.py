"""Answers questions about the values of an artifact's tensors: statistics page by page, and parts of one tensor.

Finds the tensors and the files that hold their bytes; measuring and decoding is done elsewhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from octavo.errors import InvalidArgument, NotFound
from octavo.v1 import inspector_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.inspector import findings, tensor_values, weights
from services.inspector.contents import Contents
from services.inspector.page_slices import LARGEST_SIZE, page_of
from services.inspector.reader import Reader

_PAGE_BYTES: Final = 1 << 30


def get_statistics(contents: Contents, request: pb.GetTensorStatisticsRequest) -> pb.GetTensorStatisticsResponse:
    """One page of statistics, which ends early after a gibibyte of data."""
    artifact = contents.artifact
    page = page_of(request, artifact.name)
    tensors = _chosen(contents, request.path, request.tensors)
    result = pb.GetTensorStatisticsResponse(artifact=artifact.name, total_size=len(tensors))
    size_bytes = 0
    for tensor in tensors[page.start : page.start + page.size]:
        if result.statistics and size_bytes + tensor.size_bytes > _PAGE_BYTES:
            break
        size_bytes += tensor.size_bytes
        result.statistics.append(weights.measure(data_reader(contents, tensor), tensor))
    result.next_page_token = page.token_after(len(result.statistics), len(tensors))
    notes = [finding for statistics in result.statistics for finding in weights.judge(statistics)]
    result.findings.extend(findings.ranked(notes))
    return result


def read_tensor(contents: Contents, request: pb.ReadTensorRequest) -> pb.ReadTensorResponse:
    """A rectangular part of one tensor."""
    if not request.tensor:
        raise InvalidArgument.field(
            "tensor", "names no tensor; ListTensors lists them", reason=Reason.REASON_MISSING_FIELD
        )
    tensor = find_tensor(contents, _path(contents, request.path), request.tensor)
    tensor_values.refuse_unreadable(tensor)
    starts, lengths = tensor_values.rectangle(tensor, request.starts, request.lengths)
    is_raw = request.encoding == pb.TENSOR_ENCODING_RAW
    if is_raw and tensor.size_bytes < tensor.element_count:
        raise InvalidArgument.field(
            "encoding", "this type packs two numbers into a byte; ask for TENSOR_ENCODING_VALUES"
        )
    numbers = tensor_values.part(data_reader(contents, tensor), tensor, starts, lengths)
    result = pb.ReadTensorResponse(tensor=tensor, starts=starts, lengths=lengths, artifact=contents.artifact.name)
    if is_raw:
        result.raw = numbers.tobytes()
    else:
        result.values.extend(numbers.astype(np.float64))
    return result


def data_reader(contents: Contents, tensor: pb.TensorDescription) -> Reader:
    """The file that holds a tensor's bytes."""
    return contents.reader(tensor.data_path or tensor.path)


def find_tensor(contents: Contents, path: str, name: str) -> pb.TensorDescription:
    """The tensor of this name; NotFound names the nearest ones."""
    return _found({tensor.name: tensor for tensor in contents.tensors(path)}, name, path)


def _found(tensors: Mapping[str, pb.TensorDescription], name: str, path: str) -> pb.TensorDescription:
    if name not in tensors:
        near = difflib.get_close_matches(name, tensors, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise NotFound(
            Reason.REASON_TENSOR_NOT_FOUND,
            f"{path or 'the blob'} has no tensor {name[:200]!r}{hint}",
            tensor=name[:200],
        )
    return tensors[name]


def _path(contents: Contents, path: str) -> str:
    return path if path or contents.artifact.is_blob else contents.weights_path()


def _chosen(contents: Contents, path: str, names: Sequence[str]) -> list[pb.TensorDescription]:
    """The tensors asked for in the order asked; without names all whose values can be read."""
    path = _path(contents, path)
    if len(names) > LARGEST_SIZE:
        raise InvalidArgument.field("tensors", f"{len(names)} names; at most {LARGEST_SIZE}, or none for all")
    if not names:
        return [tensor for tensor in contents.tensors(path) if tensor_values.are_numbers(tensor)]
    tensors = {tensor.name: tensor for tensor in contents.tensors(path)}
    chosen = [_found(tensors, name, path) for name in names]
    for tensor in chosen:
        tensor_values.refuse_unreadable(tensor)
    return chosen
