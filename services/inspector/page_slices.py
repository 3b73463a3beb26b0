"""Pages of lists that are computed anew for each question: a token is a position, bound to the question.

Knows nothing of what is listed. The token also carries the resolved artifact, so that a list does not change under
a reader when an alias moves.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from octavo.errors import InvalidArgument
from octavo.v1.errors_pb2 import Reason

Item = TypeVar("Item")

DEFAULT_SIZE: Final = 100
LARGEST_SIZE: Final = 1000
_DIGEST_BYTES: Final = 8
_POSITION_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Where a page begins, how long it may be, and what its successor's token is bound to."""

    start: int
    size: int
    binding: bytes

    def slice(self, items: Sequence[Item]) -> tuple[list[Item], str]:
        """The page and the token of the next one, empty at the end."""
        page = list(items[self.start : self.start + self.size])
        return page, self.token_after(len(page), len(items))

    def token_after(self, returned: int, total: int) -> str:
        """The token that goes on after so many items of this page; empty when nothing is left."""
        end = self.start + returned
        if end >= total:
            return ""
        token = self.binding + end.to_bytes(_POSITION_BYTES, "big")
        return base64.urlsafe_b64encode(token).decode().rstrip("=")


def page_of(request: Any, artifact: str) -> PageRequest:
    """The page a List request asks for; InvalidArgument for a negative size or a token of another question."""
    if request.page_size < 0:
        raise InvalidArgument.field(
            "page_size", f"{request.page_size} is negative; 1 to {LARGEST_SIZE}, or 0 for {DEFAULT_SIZE}"
        )
    size = min(request.page_size or DEFAULT_SIZE, LARGEST_SIZE)
    binding = _binding(request, artifact)
    return PageRequest(_start(request.page_token, binding), size, binding)


def _binding(request: Message, artifact: str) -> bytes:
    question = type(request)()
    question.CopyFrom(request)
    for field in ("page_token", "page_size"):
        question.ClearField(field)
    text = type(request).DESCRIPTOR.full_name.encode() + b"\0" + artifact.encode() + b"\0"
    return hashlib.sha256(text + question.SerializeToString(deterministic=True)).digest()[:_DIGEST_BYTES]


def _start(token: str, binding: bytes) -> int:
    if not token:
        return 0
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != _DIGEST_BYTES + _POSITION_BYTES or data[:_DIGEST_BYTES] != binding:
        raise InvalidArgument.field(
            "page_token",
            "does not belong to this question about this artifact; begin again without a token",
            reason=Reason.REASON_INVALID_PAGE_TOKEN,
        )
    return int.from_bytes(data[_DIGEST_BYTES:], "big")
