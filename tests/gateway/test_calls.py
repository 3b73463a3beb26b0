"""One HTTP request, one RPC: over real sockets, from httpx through the gateway to a gRPC server."""

import asyncio
import json

import pytest


def error_of(answer) -> dict:
    """The error, after holding it to the one shape that all errors have."""
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "status", "details"}
    assert error["code"] == answer.status_code
    assert answer.headers["x-request-id"]
    return error


def reason_of(answer) -> str:
    details = {detail["@type"].rpartition(".")[2]: detail for detail in error_of(answer)["details"]}
    assert details["ErrorInfo"]["domain"] in {"octavo", "shop"}
    return details["ErrorInfo"]["reason"]


def violations_of(answer) -> dict[str, str]:
    details = {detail["@type"].rpartition(".")[2]: detail for detail in error_of(answer)["details"]}
    return {v["field"]: v["description"] for v in details["BadRequest"]["fieldViolations"]}


async def test_a_get_binds_a_resource_name_from_several_segments(gateway, shop) -> None:
    answer = await gateway.http.get("/v1/shelves/1/books/a%20b")
    assert answer.status_code == 200
    assert shop.requests[0].name == "shelves/1/books/a b"
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "name": "shelves/1/books/a b",
        "displayName": "Poems",
        "genre": "GENRE_UNSPECIFIED",
        "labels": {},
        "pageCount": 0,
        "keywords": [],
    }


async def test_an_escaped_slash_stays_inside_its_segment(gateway, shop) -> None:
    assert (await gateway.http.get("/v1/books/a%2Fb")).status_code == 200
    assert shop.requests[0].name == "a/b"


async def test_a_body_field_and_the_query_make_one_request(gateway, shop) -> None:
    answer = await gateway.http.post(
        "/v1/shelves/7/books?bookId=poems&validate_only=true",
        json={"displayName": "Poems", "genre": "GENRE_POETRY", "author": {"familyName": "X"}, "labels": {"a": "b"}},
    )
    assert answer.status_code == 201
    assert answer.headers["grpc-metadata-shelf"] == "3"
    request = shop.requests[0]
    assert (request.parent, request.book_id, request.validate_only) == ("shelves/7", "poems", True)
    assert (request.book.display_name, request.book.author.family_name) == ("Poems", "X")


async def test_a_patch_fills_the_update_mask_from_the_leaves_of_its_body(gateway, shop) -> None:
    answer = await gateway.http.patch(
        "/v1/shelves/1/books/2",
        json={
            "name": "shelves/1/books/2",
            "displayName": "New",
            "author": {"familyName": "Y"},
            "labels": {"a": "b"},
            "pageCount": 0,
            "keywords": [],
        },
    )
    assert answer.status_code == 200
    request = shop.requests[0]
    assert request.book.name == "shelves/1/books/2"
    assert list(request.update_mask.paths) == ["display_name", "author.family_name", "labels", "page_count", "keywords"]


async def test_a_mask_of_the_callers_own_is_left_alone(gateway, shop) -> None:
    await gateway.http.patch("/v1/shelves/1/books/2?updateMask=displayName", json={"displayName": "N", "pageCount": 3})
    assert list(shop.requests[0].update_mask.paths) == ["display_name"]


async def test_a_body_that_contradicts_the_path_is_refused(gateway, shop) -> None:
    answer = await gateway.http.patch("/v1/shelves/1/books/2", json={"name": "shelves/1/books/3"})
    assert (answer.status_code, reason_of(answer)) == (400, "INVALID_FIELD")
    assert "the path says" in violations_of(answer)["book.name"]
    assert shop.requests == []


async def test_response_body_narrows_the_answer_to_one_field(gateway) -> None:
    answer = (await gateway.http.get("/v1/books?pageSize=3")).json()
    assert [book["name"] for book in answer] == ["a"]


async def test_an_empty_answer_is_an_empty_object(gateway) -> None:
    answer = await gateway.http.delete("/v1/shelves/1/books/2")
    assert (answer.status_code, answer.content) == (200, b"{}")


async def test_a_body_binding_takes_every_field_from_the_body_and_no_parameters(gateway, shop) -> None:
    answer = await gateway.http.post("/v1/echo?stringValue=x&prettyPrint=true", json={"int32Value": 3})
    assert "move it there" in violations_of(answer)["stringValue"]
    answer = await gateway.http.post("/v1/echo?prettyPrint=true", json={"int32Value": 3})
    assert b'\n  "int32Value": 3' in answer.content


async def test_an_empty_body_is_an_empty_message(gateway, shop) -> None:
    assert (await gateway.http.post("/v1/echo")).status_code == 200
    assert shop.requests[0].ByteSize() == 0


async def test_every_wrong_field_is_named_with_what_was_probably_meant(gateway, shop) -> None:
    answer = await gateway.http.post("/v1/shelves/1/books?bookid=x", json={"displayname": "x", "pageCount": "many"})
    assert answer.status_code == 400
    found = violations_of(answer)
    assert "did you mean 'displayName'" in found["book.displayname"]
    assert "not an integer" in found["book.page_count"]
    assert "did you mean 'bookId'" in found["bookid"]
    assert shop.requests == []


async def test_unknown_fields_alone_have_their_own_reason(gateway) -> None:
    answer = await gateway.http.get("/v1/books?pagesize=3")
    assert (answer.status_code, reason_of(answer)) == (400, "UNKNOWN_FIELD")
    assert "pageSize" in error_of(answer)["message"]


@pytest.mark.parametrize("body", [b"{", b'{"a":}', b"\xff", b"[" * 100_000, b"not json"])
async def test_a_body_that_is_not_json_is_refused(gateway, body) -> None:
    answer = await gateway.http.post("/v1/echo", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, reason_of(answer)) == (400, "INVALID_BODY")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
async def test_a_media_type_that_is_not_json_is_415(gateway, kind) -> None:
    answer = await gateway.http.post("/v1/echo", content=b"{}", headers={"content-type": kind})
    assert (answer.status_code, reason_of(answer)) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=UTF-8", "application/merge-patch+json"]
)
async def test_json_by_any_of_its_names_is_taken(gateway, kind) -> None:
    answer = await gateway.http.post("/v1/echo", content=b'{"int32Value":1}', headers={"content-type": kind})
    assert answer.json()["int32Value"] == 1


async def test_a_body_where_none_belongs_is_refused(gateway, shop) -> None:
    answer = await gateway.http.request("DELETE", "/v1/shelves/1/books/2", json={"force": True})
    assert (answer.status_code, reason_of(answer)) == (400, "INVALID_BODY")
    assert shop.requests == []


async def test_an_unknown_path_is_404(gateway) -> None:
    answer = await gateway.http.get("/v1/nothing/here")
    assert (answer.status_code, reason_of(answer), error_of(answer)["status"]) == (404, "ROUTE_NOT_FOUND", "NOT_FOUND")


async def test_a_wrong_method_is_405_with_the_right_ones(gateway) -> None:
    answer = await gateway.http.put("/v1/shelves/1/books/2")
    assert (answer.status_code, reason_of(answer)) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH"


async def test_options_lists_the_methods(gateway) -> None:
    answer = await gateway.http.options("/v1/echo")
    assert (answer.status_code, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    assert (await gateway.http.options("/v1/nothing")).status_code == 404


async def test_head_is_get_without_a_body(gateway) -> None:
    got, headed = await gateway.http.get("/v1/books/a"), await gateway.http.head("/v1/books/a")
    assert (headed.status_code, headed.content) == (200, b"")
    assert headed.headers["content-length"] == got.headers["content-length"]


@pytest.mark.parametrize("path", ["/v1/books/%zz", "/v1/books/%ff", "/v1/books?x=%ff"])
async def test_a_malformed_path_is_400(gateway, path) -> None:
    # Written by hand, since a client would mend it.
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["details"][0]["reason"] == "INVALID_PATH"


async def test_every_unary_rpc_is_callable_by_its_grpc_name(gateway, shop) -> None:
    answer = await gateway.http.post("/shop.v1.Shop/GetBook", json={"name": "shelves/1/books/2"})
    assert answer.json()["name"] == "shelves/1/books/2"
    assert (await gateway.http.post("/shop.v1.Shop/Nope", json={})).status_code == 404
    assert (await gateway.http.get("/shop.v1.Shop/GetBook")).headers["allow"] == "OPTIONS, POST"


async def test_http_bodies_travel_as_they_are(gateway, shop) -> None:
    answer = await gateway.http.get("/v1/books/a:download")
    assert (answer.headers["content-type"], answer.content) == ("text/plain", b"all of it")
    sent = await gateway.http.post("/v1/books/a:upload", content=b"\x00\xff", headers={"content-type": "image/png"})
    assert sent.status_code == 200
    content = shop.requests[1].content
    assert (shop.requests[1].name, content.content_type, content.data) == ("a", "image/png", b"\x00\xff")


async def test_metadata_crosses_both_ways_and_connection_headers_do_not(gateway, shop) -> None:
    answer = await gateway.http.get(
        "/v1/books/a",
        headers={
            "Authorization": "Bearer k",
            "Grpc-Metadata-Team": "poets",
            "Grpc-Metadata-Blob-Bin": "AAE=",
            "Grpc-Metadata-grpc-internal": "x",
            "X-Request-Id": "me-1",
            "X-Other": "x",
            "X-Forwarded-For": "10.1.1.1",
            "Grpc-Metadata-X-Forwarded-For": "10.1.1.1",
            "Cookie": "a=b",
        },
    )
    assert answer.headers["x-request-id"] == "me-1"
    metadata = shop.metadata
    assert (metadata["authorization"], metadata["team"], metadata["blob-bin"]) == ("Bearer k", "poets", b"\x00\x01")
    assert metadata["x-request-id"] == "me-1"
    assert metadata["x-forwarded-for"] == "127.0.0.1"
    assert not {"x-other", "cookie", "grpc-internal", "host", "connection"} & set(metadata)


async def test_a_deadline_is_passed_on_and_has_a_default_and_a_cap(start, shop) -> None:
    async with start(timeout_s=20.0, max_timeout_s=50.0) as gateway:
        for header, expected_s in ((None, 20), ("5S", 5), ("5000m", 5), ("2H", 50)):
            headers = {"Grpc-Timeout": header} if header else {}
            assert (await gateway.http.get("/v1/books/a", headers=headers)).status_code == 200
            assert expected_s - 2 < shop.time_left_s < expected_s + 0.5
        answer = await gateway.http.get("/v1/books/a", headers={"Grpc-Timeout": "soon"})
        assert (answer.status_code, reason_of(answer)) == (400, "INVALID_HEADER")


async def test_a_passed_deadline_is_504_and_frees_the_server(gateway, shop) -> None:
    answer = await gateway.http.post("/v1/x:fail", json={"afterS": 60}, headers={"Grpc-Timeout": "400m"})
    assert (answer.status_code, reason_of(answer)) == (504, "DEADLINE_EXCEEDED")
    await asyncio.wait_for(shop.cancelled.wait(), 5)


async def test_a_client_that_leaves_cancels_its_call(gateway, shop) -> None:
    waiting = asyncio.create_task(gateway.http.post("/v1/x:fail", json={"afterS": 60}))
    while not shop.requests:
        await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait_for(shop.cancelled.wait(), 5)


async def test_a_program_that_is_not_there_is_503_with_words_that_help(start) -> None:
    async with start(address="127.0.0.1:1") as gateway:
        answer = await gateway.http.post("/v1/echo", json={})
        assert (answer.status_code, reason_of(answer)) == (503, "UPSTREAM_UNAVAILABLE")
        assert answer.headers["retry-after"] == "1"
        assert "the shop does not answer at 127.0.0.1:1" in error_of(answer)["message"]


async def test_a_hundred_calls_at_once_each_get_their_own_answer(gateway) -> None:
    answers = await asyncio.gather(*(gateway.http.post("/v1/echo", json={"int32Value": i}) for i in range(100)))
    assert [answer.json()["int32Value"] for answer in answers] == list(range(100))


async def test_a_key_is_asked_for_where_keys_are_set(start, tmp_path) -> None:
    from octavo.serving.auth import key_digest

    (tmp_path / "keys").write_text(key_digest("sesame"))
    async with start(api_keys=tmp_path / "keys") as gateway:
        refused = await gateway.http.get("/v1/books/a")
        assert (refused.status_code, reason_of(refused)) == (401, "UNAUTHENTICATED")
        assert refused.headers["www-authenticate"] == 'Bearer realm="octavo"'
        for headers in ({"Authorization": "Bearer sesame"}, {"X-Api-Key": "sesame"}):
            assert (await gateway.http.get("/v1/books/a", headers=headers)).status_code == 200
        assert (await gateway.http.get("/livez")).status_code == 200


async def test_the_gateways_own_key_is_sent_for_callers_without_one(start, shop) -> None:
    async with start(api_key="mine", allow_insecure=True) as gateway:
        await gateway.http.get("/v1/books/a")
        assert shop.metadata["authorization"] == "Bearer mine"
        await gateway.http.get("/v1/books/a", headers={"Authorization": "Bearer theirs"})
        assert shop.metadata["authorization"] == "Bearer theirs"
