"""Headers to metadata and back, and deadlines."""

import pytest

from gateway.metadata import headers_of, http_status_of, metadata_of, timeout_s
from gateway.problems import Problem


def test_credentials_and_tracing_cross_and_the_rest_stays_outside() -> None:
    headers = [
        (b"authorization", b"Bearer k"),
        (b"x-api-key", b"k"),
        (b"traceparent", b"00-a-b-01"),
        (b"tracestate", b"a=b"),
        (b"baggage", b"c=d"),
        (b"cookie", b"secret"),
        (b"connection", b"close"),
        (b"te", b"trailers"),
        (b"host", b"x"),
        (b"grpc-timeout", b"5S"),
        (b"x-forwarded-for", b"1.2.3.4"),
    ]
    assert dict(metadata_of(headers)) == {
        "authorization": "Bearer k",
        "x-api-key": "k",
        "traceparent": "00-a-b-01",
        "tracestate": "a=b",
        "baggage": "c=d",
    }


def test_prefixed_headers_lose_their_prefix_and_reserved_ones_are_dropped() -> None:
    headers = [
        (b"grpc-metadata-team", b"poets"),
        (b"Grpc-Metadata-Team", b"again"),
        (b"grpc-metadata-grpc-status", b"0"),
        (b"grpc-metadata-authorization", b"Bearer stolen"),
        (b"grpc-metadata-x-request-id", b"mine"),
        (b"grpc-metadata-b\xe4d", b"x"),
        (b"grpc-metadata-ok", "ü".encode("latin-1")),
        (b"grpc-metadata-", b"x"),
    ]
    assert metadata_of(headers) == [("team", "poets"), ("team", "again")]


def test_binary_metadata_is_base64_padded_or_not() -> None:
    assert metadata_of([(b"grpc-metadata-x-bin", b"AAE"), (b"grpc-metadata-y-bin", b"AAE=")]) == [
        ("x-bin", b"\0\1"),
        ("y-bin", b"\0\1"),
    ]
    with pytest.raises(Problem) as refused:
        metadata_of([(b"grpc-metadata-x-bin", b"!!")])
    assert refused.value.http_status == 400


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        (b"1S", 1.0),
        (b"100m", 0.1),
        (b"5000u", 0.005),
        (b"20n", 2e-8),
        (b"2M", 120.0),
        (b"1H", 3600.0),
        (b"99999999H", 3600.0),
    ],
)
def test_a_timeout_is_eight_digits_and_a_unit_up_to_the_cap(value, expected_s) -> None:
    assert timeout_s([(b"grpc-timeout", value)], default_s=30.0, highest_s=3600.0) == pytest.approx(expected_s)


@pytest.mark.parametrize("value", [b"S", b"10", b"1X", b"123456789S", b"", b"-1S", b"1.5S", b" 1S"])
def test_a_timeout_in_another_form_is_refused(value) -> None:
    with pytest.raises(Problem) as refused:
        timeout_s([(b"grpc-timeout", value)], default_s=30.0, highest_s=3600.0)
    assert refused.value.http_status == 400


def test_without_a_timeout_the_default_counts() -> None:
    assert timeout_s([], default_s=30.0, highest_s=3600.0) == 30.0
    assert timeout_s([], default_s=None, highest_s=3600.0) is None


def test_initial_metadata_comes_back_with_the_prefix() -> None:
    found = headers_of([("shelf", "3"), ("blob-bin", b"\0\1"), ("x-http-code", "201"), ("grpc-status", "0")])
    assert found == [(b"grpc-metadata-shelf", b"3"), (b"grpc-metadata-blob-bin", b"AAE=")]


@pytest.mark.parametrize(("value", "status"), [("201", 201), ("204", 204), ("302", 200), ("500", 200), ("many", 200)])
def test_a_service_may_choose_the_status_of_a_success_and_of_nothing_else(value, status) -> None:
    assert http_status_of([("x-http-code", value)]) == status
