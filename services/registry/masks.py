"""Update masks: which fields an update changes (AIP-134, AIP-161)."""

from collections.abc import Sequence

from google.api import field_behavior_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from octavo.errors import InvalidArgument
from octavo.v1 import errors_pb2

_SET_BY_SERVER = (field_behavior_pb2.OUTPUT_ONLY, field_behavior_pb2.IDENTIFIER)


def chosen(mask: FieldMask, resource: Message, changeable: Sequence[str]) -> set[str]:
    """The fields to change: those of the mask; with an empty mask all that are set; with `*` all.

    Fields that only the server sets are left out, as AIP-161 wants; others raise InvalidArgument.
    """
    if not mask.paths:
        return {field.name for field, _ in resource.ListFields()} & set(changeable)
    if list(mask.paths) == ["*"]:
        return set(changeable)
    fields = set()
    for path in mask.paths:
        if path in changeable:
            fields.add(path)
        elif not _is_set_by_server(resource, path):
            raise InvalidArgument.field(
                "update_mask",
                f"{path[:80]!r} cannot be changed; {', '.join(changeable)} can",
                reason=errors_pb2.REASON_INVALID_FIELD,
            )
    return fields


def _is_set_by_server(resource: Message, path: str) -> bool:
    field = type(resource).DESCRIPTOR.fields_by_name.get(path)
    if field is None:
        return False
    behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return path == "etag" or any(behavior in _SET_BY_SERVER for behavior in behaviors)
