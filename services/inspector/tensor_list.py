"""Lists the tensors of an artifact that pass a filter, page by page.

Reads headers only.
"""

from __future__ import annotations

from octavo.v1 import inspector_pb2 as pb
from services.inspector.contents import Contents
from services.inspector.page_slices import page_of


def list_tensors(contents: Contents, request: pb.ListTensorsRequest) -> pb.ListTensorsResponse:
    """The page of tensors that is asked for."""
    artifact = contents.artifact
    page = page_of(request, artifact.name)
    # One file is listed or refused for what it is; of a version, the files that have tensors.
    named = request.path or artifact.is_blob
    paths = [request.path] if named else contents.tensor_paths()
    tensors = [tensor for path in paths for tensor in contents.tensors(path) if _passes(tensor, request)]
    items, next_page_token = page.slice(tensors)
    return pb.ListTensorsResponse(
        tensors=items, next_page_token=next_page_token, total_size=len(tensors), artifact=artifact.name
    )


def _passes(tensor: pb.TensorDescription, request: pb.ListTensorsRequest) -> bool:
    return (
        tensor.name.startswith(request.name_prefix)
        and request.name_contains in tensor.name
        and (not request.types or tensor.type in request.types)
        and (not request.roles or tensor.role in request.roles)
        and (not request.HasField("block") or (tensor.HasField("block") and tensor.block == request.block))
    )
