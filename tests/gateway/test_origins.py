"""Pages of other sites in a browser on this machine, in front of a gateway that asks for no keys."""

import pytest

from octavo.serving.auth import key_digest


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"]
)
async def test_a_name_that_was_bound_to_loopback_by_somebody_else_is_refused(gateway, shop, host) -> None:
    answer = await gateway.http.get("/v1/books/a", headers={"Host": host})
    error = answer.json()["error"]
    assert (answer.status_code, error["status"]) == (403, "PERMISSION_DENIED")
    assert "OCTAVO_GATEWAY_ALLOW_HOSTS" in error["message"]
    assert not shop.requests


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "octavo.localhost", "127.0.0.1:1", "[::1]:8080"])
async def test_names_that_only_this_machine_can_mean_are_let_in(gateway, host) -> None:
    assert (await gateway.http.get("/livez", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
async def test_a_page_of_another_origin_changes_nothing(gateway, shop, origin) -> None:
    for method in ("POST", "PATCH", "DELETE"):
        answer = await gateway.http.request(method, "/v1/books/a", headers={"Origin": origin})
        assert answer.status_code == 403, method
    assert not shop.requests


async def test_the_gateways_own_page_may_change_things(gateway) -> None:
    answer = await gateway.http.request("DELETE", "/v1/nowhere", headers={"Origin": gateway.url})
    assert answer.status_code == 404


async def test_hosts_and_origins_that_were_allowed_are_let_in(start) -> None:
    async with start(allow_hosts="Front.example", allow_origins="https://pages.example") as gateway:
        assert (await gateway.http.get("/livez", headers={"Host": "front.example:443"})).status_code == 200
        allowed = await gateway.http.request("DELETE", "/v1/nowhere", headers={"Origin": "https://pages.example"})
        assert allowed.status_code == 404


async def test_where_keys_are_asked_for_a_name_proves_nothing(start, tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(key_digest("k"))
    async with start(api_keys=keys) as gateway:
        assert (await gateway.http.get("/livez", headers={"Host": "octavo.example"})).status_code == 200
