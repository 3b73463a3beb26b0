"""Errors keep their class, reason, facts, violations and delay across the wire."""

import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2, error_details_pb2, status_pb2

from octavo import errors
from octavo.v1 import errors_pb2


@pytest.mark.parametrize("kind", errors.OctavoError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_the_class_that_was_raised(kind):
    raised = kind(
        errors_pb2.REASON_MODEL_NOT_FOUND,
        "there is no model 'poet'",
        violations={"name": "unknown"},
        retry_after_s=1.5,
        model="poet",
        version=3,
    )
    received = errors.from_status(raised.to_status())
    assert type(received) is kind
    assert received.reason == errors_pb2.REASON_MODEL_NOT_FOUND
    assert received.metadata == {"model": "poet", "version": "3"}
    assert received.violations == {"name": "unknown"}
    assert received.retry_after_s == 1.5
    assert str(received) == "there is no model 'poet'"


def test_every_code_of_the_status_model_but_ok_has_one_class():
    codes = {value for name, value in code_pb2.Code.items() if name != "OK"}
    assert set(errors.BY_CODE) == codes


def test_a_wrong_field_names_itself_in_the_message_and_in_the_violations():
    error = errors.InvalidArgument.field("spec.train.heads", "6 does not divide 256; try 4 or 8", heads=6)
    assert "spec.train.heads: 6 does not divide 256" in str(error)
    bad = next(detail for detail in error.to_status().details if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR))
    request = error_details_pb2.BadRequest()
    bad.Unpack(request)
    assert [violation.field for violation in request.field_violations] == ["spec.train.heads"]
    assert error.metadata == {"heads": "6"}


def test_reasons_obey_the_rules_for_error_info():
    for name in errors_pb2.Reason.keys():  # noqa: SIM118
        reason = name.removeprefix("REASON_")
        assert name.startswith("REASON_")
        assert len(reason) <= 63
        assert reason.replace("_", "").isalnum()


def test_an_error_of_a_strange_server_gets_the_reason_its_code_implies():
    error = errors.from_status(status_pb2.Status(code=code_pb2.UNAVAILABLE, message="connection refused"))
    assert isinstance(error, errors.Unavailable)
    assert error.reason == errors_pb2.REASON_UPSTREAM_UNAVAILABLE


def test_a_reason_that_is_newer_than_this_client_is_no_failure():
    detail = Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="OF_THE_FUTURE", domain="octavo"))
    error = errors.from_status(status_pb2.Status(code=code_pb2.NOT_FOUND, message="gone", details=[detail]))
    assert isinstance(error, errors.NotFound)
    assert error.reason == errors_pb2.REASON_UNSPECIFIED
