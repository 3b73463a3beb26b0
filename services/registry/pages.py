"""Pages of lists: sizes, and tokens that go on after the last item shown.

A token carries the last item's key and a digest of the request's other arguments, so that it goes on with the
same list only. It carries no authority: a forged one reads what the caller may read anyway.
"""

import base64
import binascii
import hashlib
import json
from typing import TypeAlias

from google.protobuf.message import Message

from octavo.errors import InvalidArgument
from octavo.v1 import errors_pb2

Key: TypeAlias = list[str | int]

_DEFAULT_SIZE = 50
_MAXIMUM_SIZE = 1000
_TOKEN_CHARACTERS = 1024


def size(page_size: int) -> int:
    """How many items to answer: `page_size`, 50 for 0, 1,000 at most (AIP-158)."""
    if page_size < 0:
        raise InvalidArgument.field("page_size", f"{page_size} is negative; 1 to 1000, or 0 for 50")
    return min(page_size or _DEFAULT_SIZE, _MAXIMUM_SIZE)


def token(request: Message, key: Key) -> str:
    """The token that goes on after the item of this key."""
    content = json.dumps([_binding(request), *key], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def key_after(request: Message, page_token: str, shape: tuple[type, ...]) -> Key | None:
    """The key in a token; None at the beginning. InvalidArgument for a token of another list."""
    if not page_token:
        return None
    parts = _unpacked(page_token)
    is_ours = parts is not None and [type(part) for part in parts[1:]] == list(shape)
    if parts is None or not is_ours or parts[0] != _binding(request):
        raise InvalidArgument.field(
            "page_token",
            "does not belong to this list with these arguments; send the other arguments unchanged, or begin "
            "again without a token",
            reason=errors_pb2.REASON_INVALID_PAGE_TOKEN,
        )
    return parts[1:]


def _unpacked(page_token: str) -> Key | None:
    if len(page_token) > _TOKEN_CHARACTERS:
        return None
    try:
        padded = page_token + "=" * (-len(page_token) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return parts if isinstance(parts, list) and parts else None


def _binding(request: Message) -> str:
    arguments = type(request)()
    arguments.CopyFrom(request)
    arguments.ClearField("page_token")
    arguments.ClearField("page_size")
    content = arguments.SerializeToString(deterministic=True)
    name = type(request).DESCRIPTOR.full_name.encode()
    return hashlib.sha256(name + b"\0" + content).hexdigest()[:16]
