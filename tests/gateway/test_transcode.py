"""Requests put together from path, query and body, by the examples of google/api/http.proto."""

import pytest
from google.protobuf import descriptor_pb2

from gateway import templates
from gateway.json_reader import JsonReader
from gateway.json_writer import JsonWriter
from gateway.parameters import parse_query
from gateway.problems import Problem
from gateway.routes import Route
from gateway.templates import TemplateError
from gateway.transcode import Transcoding


@pytest.fixture
def transcoding(contract):
    """A transcoding of any RPC of the test contract under a binding of the test's own."""

    def make(rpc: str, http_method: str, path: str, body: str = "", response_body: str = "") -> Transcoding:
        method = next(method for method in contract.methods() if method.name == rpc)
        route = Route(http_method, templates.parse(path), method, body, response_body)
        return Transcoding(route, contract, JsonReader(contract.pool), JsonWriter(contract.pool))

    return make


def test_path_and_query_make_a_request_without_a_body(transcoding) -> None:
    # GET /v1/messages/123456?revision=2&sub.subfield=foo
    made = transcoding("Echo", "GET", "/v1/messages/{string_value}").request(
        {"string_value": "123456"}, parse_query(b"int32Value=2&nested.text=foo"), b"", b""
    )
    assert (made.string_value, made.int32_value, made.nested.text) == ("123456", 2, "foo")


def test_a_body_field_takes_the_body_and_the_query_the_rest(transcoding) -> None:
    # PATCH /v1/messages/123456 {"text": "Hi!"} with body "message"
    made = transcoding("Echo", "PATCH", "/v1/messages/{string_value}", "nested").request(
        {"string_value": "123456"}, parse_query(b"boolValue=true"), b'{"text":"Hi!"}', b"application/json"
    )
    assert (made.string_value, made.nested.text, made.bool_value) == ("123456", "Hi!", True)


def test_a_star_takes_every_field_from_the_body_but_the_path(transcoding) -> None:
    # PATCH /v1/messages/123456 {"text": "Hi!"} with body "*"
    made = transcoding("Echo", "PATCH", "/v1/messages/{string_value}", "*").request(
        {"string_value": "123456"}, [], b'{"nested":{"text":"Hi!"},"int32Value":3}', b""
    )
    assert (made.string_value, made.nested.text, made.int32_value) == ("123456", "Hi!", 3)


def test_the_mask_that_a_patch_is_given_becomes_the_fields_of_its_body(transcoding) -> None:
    # The one FieldMask of the request is `mask`; a star binding leaves it to the caller.
    given = b'{"text":"x","nested":{"number":1,"entries":{"a":"b"}}}'
    made = transcoding("Echo", "PATCH", "/v1/x", "nested").request({}, [], given, b"")
    assert list(made.mask.paths) == ["text", "nested.number", "nested.entries"]
    assert list(transcoding("Echo", "PUT", "/v1/x", "nested").request({}, [], given, b"").mask.paths) == []
    assert list(transcoding("Echo", "PATCH", "/v1/x", "*").request({}, [], b'{"int32Value":1}', b"").mask.paths) == []


def test_a_body_may_be_one_scalar_or_a_list(transcoding) -> None:
    assert transcoding("Echo", "POST", "/v1/x", "string_value").request({}, [], b'"hi"', b"").string_value == "hi"
    made = transcoding("Echo", "POST", "/v1/x", "repeated_int32").request({}, [], b"[1,2]", b"")
    assert list(made.repeated_int32) == [1, 2]


def test_a_response_body_is_that_field_alone(transcoding, message) -> None:
    answer = message("Everything", string_value="hi", repeated_int32=[1, 2])
    for field, expected in (("string_value", b'"hi"'), ("repeated_int32", b"[1,2]"), ("nested", b"null")):
        made = transcoding("Echo", "GET", "/v1/x", response_body=field)
        assert made.answer(answer) == (b"application/json", expected)


def test_path_query_and_body_mistakes_are_told_together(transcoding) -> None:
    with pytest.raises(Problem) as refused:
        transcoding("Echo", "POST", "/v1/{int32_value}", "nested").request(
            {"int32_value": "x"}, parse_query(b"nope=1"), b'{"number":"y"}', b""
        )
    message = refused.value.status.message
    assert all(words in message for words in ("int32_value", "nope", "nested.number"))


@pytest.mark.parametrize(
    ("path", "body", "response_body", "words"),
    [
        ("/v1/{nope}", "", "", "nope"),
        ("/v1/{nested}", "", "", "is a message"),
        ("/v1/{repeated_string}", "", "", "is repeated"),
        ("/v1/x", "nope", "", "for the body"),
        ("/v1/x", "", "nope", "for the answer"),
    ],
)
def test_a_binding_that_does_not_fit_its_messages_is_refused_at_start_up(path, body, response_body, words, transcoding):
    with pytest.raises(TemplateError, match=words):
        transcoding("Echo", "POST", path, body, response_body)


def test_a_cursor_is_an_integer_called_after_sequence(transcoding) -> None:
    assert transcoding("WatchTicks", "GET", "/v1/x").cursor.name == "after_sequence"
    assert transcoding("Echo", "GET", "/v1/x").cursor is None
    assert transcoding("ReadBook", "GET", "/v1/x").chunk == "chunk"
    assert transcoding("WatchTicks", "GET", "/v1/x").chunk == ""
    assert descriptor_pb2.FieldDescriptorProto.TYPE_BYTES == 12
