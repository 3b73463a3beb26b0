"""Etags: a short word that changes with every change of a resource, and makes an update conditional."""

import hashlib

from octavo.errors import Aborted
from octavo.v1 import errors_pb2


def etag(name: str, create_time_ns: int, changes: int) -> str:
    """Quoted as in HTTP. The time of creation tells a resource from an earlier one of its name."""
    return f'"{hashlib.sha256(f"{name} {create_time_ns} {changes}".encode()).hexdigest()[:16]}"'


def check(sent: str, current: str, name: str) -> None:
    """Raises Aborted if an etag was sent and is not the current one."""
    if sent and sent != current:
        raise Aborted(
            errors_pb2.REASON_ETAG_MISMATCH,
            f"{name} has changed meanwhile: its etag is {current}, not {sent[:80]}; read it again, then retry",
            resource=name,
            etag=current,
        )
