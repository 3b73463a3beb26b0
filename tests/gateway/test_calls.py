"""One HTTP request, one RPC: over real sockets, from httpx through the gateway to a gRPC server."""


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
