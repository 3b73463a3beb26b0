"""How a request becomes a change: once per `request_id`, or not at all when it is only to be validated."""

import hashlib
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message
from sqlalchemy import Connection, delete, insert, select

from octavo.errors import InvalidArgument
from octavo.v1 import errors_pb2
from services.registry.change import Change
from services.registry.database import Database
from services.registry.schema import REQUESTS

_Answer = TypeVar("_Answer")
_Reply = TypeVar("_Reply", bound=Message)

# Longer than any client retries; the contract promises no more than "sent again".
_REQUEST_KEPT_NS = 7 * 24 * 3600 * 10**9


class Transactions:
    """Runs the domain's functions inside transactions of `database`."""

    def __init__(self, database: Database, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._database = database
        self._clock_ns = clock_ns

    async def read(self, work: Callable[[Connection], _Answer]) -> _Answer:
        """What `work` reads of one consistent state."""
        return await self._database.read(work)

    async def write(self, work: Callable[[Change], _Answer], *, actor: str) -> _Answer:
        """Makes the change that `work` is, durably."""
        return await self._database.write(lambda connection: work(Change.begin(connection, self._clock_ns(), actor)))

    async def create(
        self,
        request: Message,
        answer_type: type[_Reply],
        work: Callable[[Change], _Reply],
        *,
        actor: str,
    ) -> _Reply:
        """Makes the change at most once for the `request_id` of `request`; not at all with `validate_only`.

        Raises InvalidArgument for an id that is no UUID, or that was used before with another request.
        """
        request_id = _checked_request_id(request)
        is_trial = bool(getattr(request, "validate_only", False))

        def run(connection: Connection) -> _Reply:
            change = Change.begin(connection, self._clock_ns(), actor)
            if not request_id or is_trial:
                return work(change)
            digest = _request_digest(request)
            answered = _answer_before(connection, request_id, digest)
            if answered is not None:
                return answer_type.FromString(answered)
            answer = work(change)
            _remember(change, request_id, digest, answer)
            return answer

        return await self._database.write(run, keep=not is_trial)


def _checked_request_id(request: Message) -> str:
    text = str(getattr(request, "request_id", ""))
    if not text:
        return ""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidArgument.field("request_id", f"{text[:80]!r} is not a UUID; `uuid.uuid4()` makes one") from None


def _request_digest(request: Message) -> str:
    said = type(request)()
    said.CopyFrom(request)
    said.ClearField("request_id")
    content = said.SerializeToString(deterministic=True)
    return hashlib.sha256(type(request).DESCRIPTOR.full_name.encode() + b"\0" + content).hexdigest()


def _answer_before(connection: Connection, request_id: str, digest: str) -> bytes | None:
    row = connection.execute(select(REQUESTS).where(REQUESTS.c.request_id == request_id)).one_or_none()
    if row is None:
        return None
    if row.digest != digest:
        raise InvalidArgument.field(
            "request_id",
            f"{request_id} was used with another request; a new request needs a new one",
            reason=errors_pb2.REASON_REQUEST_ID_REUSED,
            request_id=request_id,
        )
    return bytes(row.answer)


def _remember(change: Change, request_id: str, digest: str, answer: Message) -> None:
    change.connection.execute(delete(REQUESTS).where(REQUESTS.c.time_ns < change.time_ns - _REQUEST_KEPT_NS))
    change.connection.execute(
        insert(REQUESTS).values(
            request_id=request_id,
            digest=digest,
            answer=answer.SerializeToString(),
            time_ns=change.time_ns,
        )
    )
