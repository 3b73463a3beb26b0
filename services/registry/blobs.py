"""Which blobs there are: a blob is there when a row says so and its file has the size that the row says."""

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, delete, insert, select

from octavo.errors import InvalidArgument, NotFound
from octavo.v1 import errors_pb2
from octavo.v1.blobs_pb2 import Blob, QueryWriteResponse
from services.registry.blob_files import BlobFiles, corrupt
from services.registry.change import Change
from services.registry.names import blob_name
from services.registry.schema import BLOBS, UPLOADS

# Longer than any writer retries.
_UPLOAD_KEPT_NS = 7 * 24 * 3600 * 10**9


def timestamp(time_ns: int) -> Timestamp:
    """Nanoseconds since 1970 as the contracts say them."""
    stamp = Timestamp()
    stamp.FromNanoseconds(time_ns)
    return stamp


def find(connection: Connection, files: BlobFiles, digest: str) -> Blob | None:
    """The blob, if it is there."""
    row = connection.execute(select(BLOBS).where(BLOBS.c.digest == digest)).one_or_none()
    if row is None or files.size(digest) != row.size_bytes:
        return None
    return Blob(name=blob_name(digest), size_bytes=row.size_bytes, create_time=timestamp(row.create_time_ns))


def get(connection: Connection, files: BlobFiles, digest: str, field: str = "name") -> Blob:
    """The blob; NotFound if it is not there."""
    blob = find(connection, files, digest)
    if blob is None:
        raise _missing(digest, field)
    return blob


def get_readable(connection: Connection, files: BlobFiles, digest: str) -> Blob:
    """The blob, to be read; DataLoss if it was there once and its file is gone or cut."""
    blob = find(connection, files, digest)
    if blob is not None:
        return blob
    known = connection.execute(select(BLOBS.c.digest).where(BLOBS.c.digest == digest)).one_or_none()
    raise corrupt(digest) if known else _missing(digest, "name")


def check_size(blob: Blob, size_bytes: int, field: str) -> None:
    """Raises InvalidArgument if the blob has another size."""
    if blob.size_bytes != size_bytes:
        raise InvalidArgument.field(
            field,
            f"{size_bytes} is not the size of {blob.name}, which is {blob.size_bytes}",
            reason=errors_pb2.REASON_SIZE_MISMATCH,
            blob=blob.name,
            size_bytes=blob.size_bytes,
        )


def add(change: Change, digest: str, size_bytes: int) -> Blob:
    """Notes a blob whose file is in place."""
    chosen = select(BLOBS.c.create_time_ns).where(BLOBS.c.digest == digest)
    create_time_ns = change.connection.execute(chosen).scalar_one_or_none()
    if create_time_ns is None:
        create_time_ns = change.time_ns
        values = {"digest": digest, "size_bytes": size_bytes, "create_time_ns": create_time_ns}
        change.connection.execute(insert(BLOBS).values(values))
    return Blob(name=blob_name(digest), size_bytes=size_bytes, create_time=timestamp(create_time_ns))


def add_uploaded(change: Change, digest: str, size_bytes: int, upload: str) -> Blob:
    """Notes a blob whose file is in place, and the upload that brought it."""
    expired = UPLOADS.c.time_ns < change.time_ns - _UPLOAD_KEPT_NS
    change.connection.execute(delete(UPLOADS).where((UPLOADS.c.upload == upload) | expired))
    values = {"upload": upload, "digest": digest, "time_ns": change.time_ns}
    change.connection.execute(insert(UPLOADS).values(values))
    return add(change, digest, size_bytes)


def find_completed(connection: Connection, files: BlobFiles, upload: str) -> QueryWriteResponse | None:
    """The answer for an upload that is complete, while its blob is there."""
    digest = connection.execute(select(UPLOADS.c.digest).where(UPLOADS.c.upload == upload)).scalar_one_or_none()
    blob = find(connection, files, digest) if digest else None
    return QueryWriteResponse(committed_size_bytes=blob.size_bytes, blob=blob) if blob else None


def _missing(digest: str, field: str) -> NotFound:
    name = blob_name(digest)
    return NotFound(
        errors_pb2.REASON_BLOB_NOT_FOUND,
        f"there is no {name}; upload it first",
        violations={field: f"there is no {name}; upload it first"},
        blob=name,
    )
