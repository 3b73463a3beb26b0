"""How we fail: one tree of errors, to and from google.rpc.Status. Knows nothing of grpc or HTTP.

OctavoError
  + Cancelled           the caller went away
  + InvalidArgument     a field is wrong whatever the state: say which, what is wrong, what would be right
  + DeadlineExceeded
  + NotFound
  + AlreadyExists
  + PermissionDenied
  + Unauthenticated
  + ResourceExhausted   a queue, a disk or a quota is full; may say when to come back
  + FailedPrecondition  wrong in the present state: the caller has to change something first
  + Aborted             somebody else was faster: read again and retry
  + OutOfRange
  + Unimplemented
  + Internal            a defect of ours
  + Unavailable         transient: the client retries by itself
  + DataLoss            bytes are not what they were
  + Unknown             an error of a server that is not ours
"""

from collections.abc import Mapping
from typing import ClassVar, Self

from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2, error_details_pb2, status_pb2

from octavo.v1 import errors_pb2
from octavo.v1.errors_pb2 import Reason

DOMAIN = "octavo"


class OctavoError(Exception):
    """A failure that a caller can understand: code, stable reason, sentence, facts and field violations.

    `metadata` are the dynamic parts of the message (AIP-193); `violations` maps a field path to what is wrong
    with it and what would be right; `retry_after_s` says when another attempt makes sense.
    """

    code: ClassVar[int] = code_pb2.UNKNOWN

    def __init__(
        self,
        reason: Reason.ValueType,
        message: str,
        *,
        violations: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = dict(violations or {})
        self.retry_after_s = retry_after_s
        self.metadata = {key: str(value) for key, value in metadata.items()}

    @property
    def reason_name(self) -> str:
        """The reason as it travels in ErrorInfo: without the enum's prefix."""
        return Reason.Name(self.reason).removeprefix("REASON_")

    def to_status(self) -> status_pb2.Status:
        """This error as google.rpc.Status with ErrorInfo and, where they apply, BadRequest and RetryInfo."""
        status = status_pb2.Status(code=self.code, message=self.message)
        info = error_details_pb2.ErrorInfo(reason=self.reason_name, domain=DOMAIN, metadata=self.metadata)
        status.details.append(_packed(info))
        if self.violations:
            bad = error_details_pb2.BadRequest()
            for field, description in self.violations.items():
                bad.field_violations.add(field=field, description=description, reason=self.reason_name)
            status.details.append(_packed(bad))
        if self.retry_after_s is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            status.details.append(_packed(retry))
        return status


class Cancelled(OctavoError):
    """The caller went away."""

    code = code_pb2.CANCELLED


class InvalidArgument(OctavoError):
    """A field is wrong, whatever the state of the system."""

    code = code_pb2.INVALID_ARGUMENT

    @classmethod
    def field(
        cls,
        path: str,
        description: str,
        *,
        reason: Reason.ValueType = errors_pb2.REASON_INVALID_FIELD,
        **metadata: object,
    ) -> Self:
        """One wrong field: `InvalidArgument.field("heads", "6 does not divide the width 256; try 4 or 8")`."""
        return cls.fields({path: description}, reason=reason, **metadata)

    @classmethod
    def fields(
        cls,
        violations: Mapping[str, str],
        *,
        reason: Reason.ValueType = errors_pb2.REASON_INVALID_FIELD,
        **metadata: object,
    ) -> Self:
        """Several wrong fields at once, so that the caller mends them in one go."""
        message = "; ".join(f"{path}: {description}" for path, description in violations.items())
        error = cls(reason, message, violations=violations)
        error.metadata = {key: str(value) for key, value in metadata.items()}
        return error


class DeadlineExceeded(OctavoError):
    """The deadline passed before the work was done."""

    code = code_pb2.DEADLINE_EXCEEDED


class NotFound(OctavoError):
    """What was named is not there."""

    code = code_pb2.NOT_FOUND


class AlreadyExists(OctavoError):
    """The name is taken."""

    code = code_pb2.ALREADY_EXISTS


class PermissionDenied(OctavoError):
    """The caller is known and may not do this."""

    code = code_pb2.PERMISSION_DENIED


class Unauthenticated(OctavoError):
    """The caller is not known."""

    code = code_pb2.UNAUTHENTICATED


class ResourceExhausted(OctavoError):
    """A queue, a disk or a quota is full."""

    code = code_pb2.RESOURCE_EXHAUSTED


class FailedPrecondition(OctavoError):
    """Wrong in the present state: something else has to happen first."""

    code = code_pb2.FAILED_PRECONDITION


class Aborted(OctavoError):
    """Somebody else was faster: read again, then retry."""

    code = code_pb2.ABORTED


class OutOfRange(OctavoError):
    """Past the end of what there is."""

    code = code_pb2.OUT_OF_RANGE


class Unimplemented(OctavoError):
    """The contract has it, this server does not."""

    code = code_pb2.UNIMPLEMENTED


class Internal(OctavoError):
    """A defect of ours."""

    code = code_pb2.INTERNAL


class Unavailable(OctavoError):
    """Transient: another attempt may find it."""

    code = code_pb2.UNAVAILABLE


class DataLoss(OctavoError):
    """Bytes are not what they were."""

    code = code_pb2.DATA_LOSS


class Unknown(OctavoError):
    """An error of a server that is not ours."""

    code = code_pb2.UNKNOWN


BY_CODE: Mapping[int, type[OctavoError]] = {error.code: error for error in OctavoError.__subclasses__()}


_IMPLIED: Mapping[int, Reason.ValueType] = {
    code_pb2.UNAVAILABLE: errors_pb2.REASON_UPSTREAM_UNAVAILABLE,
    code_pb2.DEADLINE_EXCEEDED: errors_pb2.REASON_DEADLINE_EXCEEDED,
    code_pb2.CANCELLED: errors_pb2.REASON_CANCELLED,
    code_pb2.UNIMPLEMENTED: errors_pb2.REASON_NOT_IMPLEMENTED,
    code_pb2.RESOURCE_EXHAUSTED: errors_pb2.REASON_LIMIT_EXCEEDED,
    code_pb2.INTERNAL: errors_pb2.REASON_INTERNAL,
}


def from_status(status: status_pb2.Status) -> OctavoError:
    """The error that `to_status` was called on; details that are not ours are left out."""
    info, violations, retry_after_s = error_details_pb2.ErrorInfo(), {}, None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations = {violation.field: violation.description for violation in bad.field_violations}
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    error = BY_CODE.get(status.code, Unknown)(
        _reason(info.reason, status.code), status.message, violations=violations, retry_after_s=retry_after_s
    )
    error.metadata = dict(info.metadata)
    return error


def _reason(name: str, code: int) -> Reason.ValueType:
    """The reason of this name; one implied by the code where the server is not ours, or newer than us."""
    if f"REASON_{name}" in Reason.keys():  # noqa: SIM118 - an enum wrapper is no mapping
        return Reason.Value(f"REASON_{name}")
    return _IMPLIED.get(code, errors_pb2.REASON_UNSPECIFIED)


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
