"""How errors become HTTP: one table, one shape, nothing lost and nothing leaked."""

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from gateway import problems
from gateway.problems import Problem

EXPECTED = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}


def test_every_grpc_code_has_its_http_status() -> None:
    assert {code_pb2.Code.Name(code): status for code, status in problems.HTTP_STATUS.items()} == EXPECTED
    assert set(problems.HTTP_STATUS) == set(code_pb2.Code.values())


def test_a_code_that_nobody_knows_is_500() -> None:
    tree = Problem(status_pb2.Status(code=77, message="?")).tree()
    assert (tree["error"]["code"], tree["error"]["status"]) == (500, "UNKNOWN")


def test_a_pause_is_rounded_up_to_whole_seconds() -> None:
    status = status_pb2.Status(code=code_pb2.UNAVAILABLE)
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1200)
    status.details.add().Pack(retry)
    assert Problem(status).headers["Retry-After"] == "2"


def test_details_that_are_broken_leave_code_and_message() -> None:
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND, None, (("grpc-status-details-bin", b"\xff\xff"),), details="gone"
    )
    problem = problems.of_call(error, "shop", "here")
    assert (problem.http_status, problem.status.message) == (404, "gone")


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
async def test_a_failed_call_has_the_status_the_table_says_and_its_details(gateway, code) -> None:
    answer = await gateway.http.post("/v1/NO_SUCH_THING:fail", json={"code": code.value[0]})
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == EXPECTED[code.name]
    assert (error["status"], error["message"]) == (code.name, "failed with NO_SUCH_THING")
    assert error["details"] == [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "NO_SUCH_THING",
            "domain": "shop",
        }
    ]


async def test_details_of_an_unknown_type_are_kept(gateway) -> None:
    answer = await gateway.http.post("/v1/STRANGE:fail", json={"code": 9})
    assert answer.json()["error"]["details"][1] == {"@type": "type.googleapis.com/who.Knows", "value": "AQI="}


async def test_retry_info_is_a_retry_after_header(gateway) -> None:
    answer = await gateway.http.post("/v1/FULL:fail", json={"code": 8, "retryAfterS": 2.5})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json()["error"]["details"][1]["retryDelay"] == "2.500s"


async def test_an_error_without_details_keeps_its_message(gateway) -> None:
    error = (await gateway.http.post("/v1/bare:fail", json={"code": 5})).json()["error"]
    assert (error["code"], error["message"], error["details"]) == (404, "failed with bare", [])


async def test_unauthenticated_says_how_to_come_in(gateway) -> None:
    answer = await gateway.http.post("/v1/WHO:fail", json={"code": 16})
    assert answer.headers["www-authenticate"] == 'Bearer realm="octavo"'
