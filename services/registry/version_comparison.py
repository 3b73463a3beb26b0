"""Versions side by side: what differs in metrics, files and tensors. Reads what is registered, never the bytes."""

from sqlalchemy import Connection

from octavo.errors import InvalidArgument
from octavo.v1.registry_pb2 import CompareVersionsRequest, CompareVersionsResponse, Version, VersionDifference
from services.registry import versions

_MINIMUM, _MAXIMUM = 2, 8
_MAXIMUM_TENSORS = 1000


def compare(connection: Connection, request: CompareVersionsRequest) -> CompareVersionsResponse:
    """Holds each version against the first."""
    count = len(request.references)
    if not _MINIMUM <= count <= _MAXIMUM:
        raise InvalidArgument.field("references", f"{count} references; {_MINIMUM} to {_MAXIMUM}")
    compared = [
        versions.resolve(connection, reference, f"references[{index}]")
        for index, reference in enumerate(request.references)
    ]
    response = CompareVersionsResponse(differences=[VersionDifference()])
    response.differences.extend(difference(compared[0], version) for version in compared[1:])
    for version in compared:
        version.ClearField("tensors")
    response.versions.extend(compared)
    return response


def difference(first: Version, other: Version) -> VersionDifference:
    """What `other` differs in from `first`."""
    files = {file.path: file.blob for file in first.files}
    other_files = {file.path: file.blob for file in other.files}
    tensors = {tensor.name: tensor.digest for tensor in first.tensors}
    other_tensors = {tensor.name: tensor.digest for tensor in other.tensors}
    names = sorted(tensors.keys() | other_tensors.keys())
    changed = [name for name in names if tensors.get(name) != other_tensors.get(name)]
    return VersionDifference(
        metrics={name: value - first.metrics[name] for name, value in other.metrics.items() if name in first.metrics},
        changed_files=sorted(path for path, blob in other_files.items() if files.get(path) != blob),
        missing_files=sorted(files.keys() - other_files.keys()),
        changed_tensors=changed[:_MAXIMUM_TENSORS],
        equal_tensor_count=len(names) - len(changed),
    )
