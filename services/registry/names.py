"""Resource names: what each kind looks like, how to take one apart and how to put it together."""

import re
from typing import NamedTuple

from octavo.errors import InvalidArgument
from octavo.v1 import errors_pb2

_ID_PATTERN = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NUMBER_PATTERN = r"[1-9][0-9]{0,17}"
_ID_WORDS = "an id is 1 to 63 of `a-z 0-9 -`, begins with a letter and does not end with `-`"

_ID = re.compile(_ID_PATTERN)
_MODEL = re.compile(f"models/({_ID_PATTERN})")
_VERSION = re.compile(f"models/({_ID_PATTERN})/versions/({_NUMBER_PATTERN})")
_ALIAS = re.compile(f"models/({_ID_PATTERN})/aliases/({_ID_PATTERN})")
_REFERENCE = re.compile(f"models/({_ID_PATTERN})(?:@({_ID_PATTERN})|/versions/({_NUMBER_PATTERN}))?")
_DATASET = re.compile(f"datasets/({_ID_PATTERN})(?:/versions/({_NUMBER_PATTERN}))?")
_DEPLOYMENT = re.compile(f"deployments/({_ID_PATTERN})")
_BLOB = re.compile(r"blobs/sha256:([0-9a-f]{64})")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_UPLOAD = re.compile(r"uploads/([a-z0-9-]{16,64})")
_RESERVED_ALIAS = re.compile(r"latest|v[0-9]+")


class Reference(NamedTuple):
    """What a caller names a version by: an alias, a number, or neither (the newest)."""

    model: str
    alias: str = ""
    number: int = 0


class DatasetName(NamedTuple):
    """A dataset, and which of its versions; 0 is the newest."""

    dataset: str
    version: int = 0


def checked_id(text: str, field: str) -> str:
    """`text`, if it is an id; InvalidArgument otherwise."""
    _match(_ID, text, field, _ID_WORDS)
    return text


def model_in(name: str, field: str = "name") -> str:
    """The id in `models/{id}`."""
    return str(_match(_MODEL, name, field, f"`models/{{id}}`; {_ID_WORDS}")[1])


def version_in(name: str, field: str = "name") -> tuple[str, int]:
    """The model's id and the number in `models/{id}/versions/{number}`."""
    match = _match(_VERSION, name, field, f"`models/{{id}}/versions/{{number}}`; {_ID_WORDS}")
    return str(match[1]), int(match[2])


def alias_in(name: str, field: str = "name") -> tuple[str, str]:
    """The ids in `models/{id}/aliases/{alias}`, as they were given before: `checked_alias` is for new ones."""
    match = _match(_ALIAS, name, field, f"`models/{{id}}/aliases/{{alias}}`; {_ID_WORDS}")
    return str(match[1]), str(match[2])


def checked_alias(alias: str, field: str = "name") -> str:
    """`alias`, unless it reads like a version: `latest`, `v3`."""
    if _RESERVED_ALIAS.fullmatch(alias):
        raise InvalidArgument.field(
            field,
            f"`{alias}` reads like a version and cannot be an alias; try `champion`",
            reason=errors_pb2.REASON_INVALID_NAME,
        )
    return alias


def reference_in(text: str, field: str = "reference") -> Reference:
    """The parts of `models/poet`, `models/poet@champion` or `models/poet/versions/3`."""
    expected = f"`models/poet`, `models/poet@champion` or `models/poet/versions/3`; {_ID_WORDS}"
    match = _match(_REFERENCE, text, field, expected)
    return Reference(match[1], match[2] or "", int(match[3] or 0))


def dataset_in(name: str, field: str = "name") -> DatasetName:
    """The parts of `datasets/{id}` or `datasets/{id}/versions/{version}`."""
    expected = f"`datasets/{{id}}` or `datasets/{{id}}/versions/{{version}}`; {_ID_WORDS}"
    match = _match(_DATASET, name, field, expected)
    return DatasetName(match[1], int(match[2] or 0))


def deployment_in(name: str, field: str = "name") -> str:
    """The id in `deployments/{id}`."""
    return str(_match(_DEPLOYMENT, name, field, f"`deployments/{{id}}`; {_ID_WORDS}")[1])


def blob_in(name: str, field: str = "name") -> str:
    """The 64 hexadecimal digits in `blobs/sha256:…`."""
    return str(_match(_BLOB, name, field, "`blobs/sha256:` and 64 digits of `0-9 a-f`")[1])


def checked_digest(text: str, field: str) -> str:
    """`text`, if it is `sha256:…`."""
    _match(_DIGEST, text, field, "`sha256:` and 64 digits of `0-9 a-f`")
    return text


def upload_in(name: str, field: str = "upload") -> str:
    """The id in `uploads/{id}`."""
    return str(_match(_UPLOAD, name, field, "`uploads/` and 16 to 64 of `a-z 0-9 -`")[1])


def model_name(model: str) -> str:
    """`models/{model}`."""
    return f"models/{model}"


def version_name(model: str, number: int) -> str:
    """`models/{model}/versions/{number}`."""
    return f"models/{model}/versions/{number}"


def alias_name(model: str, alias: str) -> str:
    """`models/{model}/aliases/{alias}`."""
    return f"models/{model}/aliases/{alias}"


def dataset_name(dataset: str, version: int = 0) -> str:
    """`datasets/{dataset}`, and its version where one is given."""
    return f"datasets/{dataset}/versions/{version}" if version else f"datasets/{dataset}"


def deployment_name(deployment: str) -> str:
    """`deployments/{deployment}`."""
    return f"deployments/{deployment}"


def blob_name(digest: str) -> str:
    """`blobs/sha256:{digest}`."""
    return f"blobs/sha256:{digest}"


def _match(pattern: re.Pattern[str], text: str, field: str, expected: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    if match is None:
        if not text:
            raise InvalidArgument.field(field, f"is missing; it is {expected}", reason=errors_pb2.REASON_MISSING_FIELD)
        shown = text if len(text) <= 80 else f"{text[:80]}…"
        raise InvalidArgument.field(
            field, f"{shown!r} is not a name here; it is {expected}", reason=errors_pb2.REASON_INVALID_NAME
        )
    return match
