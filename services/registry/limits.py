"""What a field may hold at most. Names, labels, masks and pages have files of their own."""

import math
from collections.abc import Mapping

from google.protobuf.struct_pb2 import Struct

from octavo.errors import InvalidArgument

_DESCRIPTION_CHARACTERS = 2000
_METRIC_COUNT = 256
_METRIC_NAME_CHARACTERS = 127
_STRUCT_BYTES = 65_536


def check_description(text: str, field: str) -> None:
    """Raises InvalidArgument for more than 2,000 characters."""
    if len(text) > _DESCRIPTION_CHARACTERS:
        raise InvalidArgument.field(field, f"{len(text)} characters; {_DESCRIPTION_CHARACTERS} at most")


def check_word(text: str, field: str, characters: int) -> None:
    """Raises InvalidArgument for more than `characters`, or one that cannot be printed."""
    if len(text) > characters:
        raise InvalidArgument.field(field, f"{len(text)} characters; {characters} at most")
    if not text.isprintable():
        raise InvalidArgument.field(field, f"{text!r} has characters that cannot be printed")


def check_count(count: int, field: str, maximum: int) -> None:
    """Raises InvalidArgument for more than `maximum` items."""
    if count > maximum:
        raise InvalidArgument.field(field, f"{count} are too many; {maximum} at most")


def check_not_negative(number: int, field: str) -> None:
    """Raises InvalidArgument for a number below 0."""
    if number < 0:
        raise InvalidArgument.field(field, f"{number} is negative; 0 or more")


def check_metrics(metrics: Mapping[str, float], field: str) -> None:
    """Raises InvalidArgument for too many metrics, a name too long, or a number that is none."""
    check_count(len(metrics), field, _METRIC_COUNT)
    for name, number in metrics.items():
        if not 1 <= len(name) <= _METRIC_NAME_CHARACTERS:
            raise InvalidArgument.field(
                field, f"the name {name[:80]!r} has {len(name)} characters; 1 to {_METRIC_NAME_CHARACTERS}"
            )
        if not math.isfinite(number):
            raise InvalidArgument.field(f"{field}[{name!r}]", f"{number} is not finite; leave it out")


def check_struct(struct: Struct, field: str) -> None:
    """Raises InvalidArgument for more than 64 KiB."""
    if struct.ByteSize() > _STRUCT_BYTES:
        raise InvalidArgument.field(field, f"{struct.ByteSize()} bytes; {_STRUCT_BYTES} at most")
