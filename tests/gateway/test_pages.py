"""What a browser gets: everything from this machine, nothing inline, nothing missing."""

import re

import pytest

from gateway.pages import _ASSETS


async def test_the_front_page_leads_to_the_docs(gateway) -> None:
    answer = await gateway.http.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


async def test_the_docs_and_all_that_they_load_are_served_under_a_strict_policy(gateway) -> None:
    page = await gateway.http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    wanted, seen = set(re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)), set()
    assert {"docs/docs.css", "docs/docs.js"} <= wanted
    while wanted - seen:
        path = (wanted - seen).pop()
        seen.add(path)
        answer = await gateway.http.get(f"/{path}")
        assert answer.status_code == 200, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        if path.endswith(".js"):
            assert answer.headers["content-type"].startswith("text/javascript")
            wanted |= {f"docs/{name}" for name in re.findall(r'from "\./([^"]+)"', answer.text)}
    assert {f"docs/{path.name}" for path in _ASSETS.iterdir()} - {"docs/docs.html"} == seen


@pytest.mark.parametrize("path", sorted(_ASSETS.iterdir()), ids=lambda path: path.name)
def test_an_asset_needs_no_network_and_runs_nothing_inline(path) -> None:
    text = path.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|new Function|document\.write", text)
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*src=)|<style|style=|\son\w+=", text)


async def test_an_asset_that_is_not_there_is_404_in_the_common_shape(gateway) -> None:
    for path in ("/docs/nope.js", "/docs/..%2Fpages.py", "/docs/docs.html/x"):
        answer = await gateway.http.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["details"][0]["reason"] == "ROUTE_NOT_FOUND"


async def test_an_unchanged_asset_is_304(gateway) -> None:
    etag = (await gateway.http.get("/docs/docs.css")).headers["etag"]
    assert (await gateway.http.get("/docs/docs.css", headers={"If-None-Match": etag})).status_code == 304
