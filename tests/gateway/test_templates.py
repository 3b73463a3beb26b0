"""The grammar and the matching of google.api.http paths, with the vectors of ESP and grpc-gateway."""

import random
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import templates
from gateway.templates import Matcher, PathError, TemplateError

RESERVED = "!#$&'()*+,/:;=?@[]"
ALL_ESCAPED = "".join(f"%{ord(c):02X}" for c in RESERVED)


def matcher(*sources: str) -> Matcher[str]:
    found: Matcher[str] = Matcher()
    for source in sources:
        found.add(templates.parse(source), source)
    return found


def match(path: str, *sources: str) -> tuple[str, dict[str, str]] | None:
    return matcher(*sources).match(templates.split(path))


@pytest.mark.parametrize(
    ("sources", "path", "expected"),
    [
        (["/**"], "/", ("/**", {})),
        (["/**"], "/a/", ("/**", {})),
        (["/c/f/d/e", "/c/*/d/e", "/c/*/d/**"], "/c/f/d/e", ("/c/f/d/e", {})),
        (["/c/f/d/e", "/c/*/d/e", "/c/*/d/**"], "/c/x/d/e", ("/c/*/d/e", {})),
        (["/c/f/d/e", "/c/*/d/e", "/c/*/d/**"], "/c/u/d/v", ("/c/*/d/**", {})),
        (["/c/*/d/**"], "/c//v/d/w/x", None),
        (["/c/*/d/**"], "/c/x/y/d/z", None),
        (
            ["/a/{x=b/*}/{y=d/**}"],
            "/a/b/zoo/d/animal/tiger",
            ("/a/{x=b/*}/{y=d/**}", {"x": "b/zoo", "y": "d/animal/tiger"}),
        ),
        (
            ["/alpha/{x=*}/beta/{y=**}/gamma"],
            "/alpha/dog/beta/eat/bones/gamma",
            ("/alpha/{x=*}/beta/{y=**}/gamma", {"x": "dog", "y": "eat/bones"}),
        ),
        (["/{x=**}/a/b"], "/foo/bar/a/b", ("/{x=**}/a/b", {"x": "foo/bar"})),
        (["/{x=**}/a/{y=b}"], "/foo/bar/a/b", ("/{x=**}/a/{y=b}", {"x": "foo/bar", "y": "b"})),
        (["/a/{x}/c"], "/a/p%20q%2Fr+/c", ("/a/{x}/c", {"x": "p q/r+"})),
        (
            ["/a/{x=p/*/q/*}/c"],
            "/a/p/foo%20foo/q/bar%2Fbar/c",
            ("/a/{x=p/*/q/*}/c", {"x": "p/foo foo/q/bar%2Fbar"}),
        ),
        (
            ["/a/{x=*}/{y=**}/c"],
            f"/a/{ALL_ESCAPED}/{ALL_ESCAPED}/c",
            ("/a/{x=*}/{y=**}/c", {"x": RESERVED, "y": ALL_ESCAPED}),
        ),
        (
            ["/person", "/person/{id=*}", "/{x=**}:verb"],
            "/person/jason:verb",
            ("/{x=**}:verb", {"x": "person/jason"}),
        ),
        (
            ["/person", "/person/{id=*}", "/{x=**}:verb"],
            "/person/jason:other",
            ("/person/{id=*}", {"id": "jason:other"}),
        ),
        (["/person", "/person/{id=*}", "/{x=**}:verb"], "/person:other", None),
        (["/person", "/person/{id=*}", "/{x=**}:verb"], "/animal/cat", None),
        (
            ["/person/{id=*}/name", "/{x=**}:verb"],
            "/person/jason:verb/name",
            ("/person/{id=*}/name", {"id": "jason:verb"}),
        ),
        (["/{a=*}/{b=*}:verb"], "/some:verb/const:verb", ("/{a=*}/{b=*}:verb", {"a": "some:verb", "b": "const"})),
        (["/{a=**}:verb", "/{a=**}"], "/some:verb2/const:verb2", ("/{a=**}", {"a": "some:verb2/const:verb2"})),
        (["/{a=**}:verb", "/{a=**}"], "/some/const:verb", ("/{a=**}:verb", {"a": "some/const"})),
        (["/some/*:verb"], "/some/other:verb/", None),
        (["/some/*:verb"], "/some/:verb", None),
        (["/foo/{id}:verb:subverb"], "/foo/bar:verb:subverb", ("/foo/{id}:verb:subverb", {"id": "bar"})),
        (["/foo/{id}:b", "/foo/{id}:a:b"], "/foo/x:a:b", ("/foo/{id}:a:b", {"id": "x"})),
        (
            ["/a/{x=b/**}", "/a/{x=b/**}/z", "/a/{x=b/**}/y/z"],
            "/a/b/world/c/y/z",
            ("/a/{x=b/**}/y/z", {"x": "b/world/c"}),
        ),
        (["/a/{x=b/**}", "/a/{x=b/**}/z", "/a/{x=b/**}/y/z"], "/a/b/world/c/z", ("/a/{x=b/**}/z", {"x": "b/world/c"})),
        (["/a/{x=b/**}", "/a/{x=b/**}/z", "/a/{x=b/**}/y/z"], "/a/b/world/c", ("/a/{x=b/**}", {"x": "b/world/c"})),
        (["/a/**"], "/a", ("/a/**", {})),
        (["/a", "/a/**"], "/a", ("/a", {})),
        (["/otherprefix/suffix"], "/otherprefix/suffix", ("/otherprefix/suffix", {})),
        (["/v1/{x}"], "/v1/", None),
        (["/v1/models"], "/v1/%6Dodels", ("/v1/models", {})),
        (["/v1/{name=blobs/*}"], "/v1/blobs/sha256:ab", ("/v1/{name=blobs/*}", {"name": "blobs/sha256:ab"})),
        (["/v1/{x}"], "/v1/%E4%BD%A0", ("/v1/{x}", {"x": "你"})),
        (["/v1/{x}"], "/v1/a%00b", ("/v1/{x}", {"x": "a\0b"})),
    ],
)
def test_a_path_matches_the_most_specific_template(sources, path, expected) -> None:
    for order in (sources, sources[::-1]):
        assert match(path, *order) == expected


@pytest.mark.parametrize(
    "source",
    [
        *("", "/", "//", "/{}", "/a/", "/a//b", "/:verb", "/*:", "/a/{var.", "{x}", "/a/{var=/b}", "/{var=a/{n=b}}"),
        *("/a{x}", "/{x}a", "/a/**/*", "/a/**/**", "a", "/{x", "/{x=}", "/{x=a/}", "/a/{1x}", "/{x.}", "/a b"),
        *("/a/{x=v:w}", "/{x}/{x}", "/a?b", "/{x=**}/{y=**}", "/a/*b", "/a/b*"),
    ],
)
def test_a_template_outside_the_grammar_is_refused(source) -> None:
    with pytest.raises(TemplateError):
        templates.parse(source)


@pytest.mark.parametrize(
    ("one", "other"),
    [("/v1/{x}", "/v1/{y}"), ("/v1/*", "/v1/{y=*}"), ("/a/**/z", "/a/{x=**}/z"), ("/a/*:b", "/a/{x}:b"), ("/a", "/a")],
)
def test_two_templates_for_the_same_paths_are_refused(one, other) -> None:
    with pytest.raises(TemplateError, match="same paths"):
        matcher(one, other)


@pytest.mark.parametrize("path", ["/a/%zz", "/a/%", "/a/%2", "a/b", "", "/%4"])
def test_a_malformed_path_is_an_error_and_never_a_match(path) -> None:
    with pytest.raises(PathError):
        match(path, "/**")


def test_a_variable_that_is_not_utf8_is_an_error() -> None:
    with pytest.raises(PathError, match="UTF-8"):
        match("/a/%ff", "/a/{x}")


@pytest.mark.parametrize("path", ["/a" + "/" * 64_000 + "x", "/a" + "/b" * 32_000, "/a/" + ":" * 64_000])
def test_a_path_of_64000_slashes_answers_at_once(path) -> None:
    found = matcher("/a/**/x", "/a/{x=**}/x/y", "/a/*/x", "/a/{b=**}:go", "/a/{b}:stop:now")
    started = time.process_time()
    found.match(templates.split(path))
    assert time.process_time() - started < 0.1


segments = st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable())


@given(st.lists(segments, min_size=1, max_size=5))
def test_any_text_comes_back_from_single_segments(values) -> None:
    source = "/v1" + "".join(f"/{{x{i}}}" for i in range(len(values))) + "/end"
    path = "/v1/" + "/".join(quote(value, safe="") for value in values) + "/end"
    assert match(path, source) == (source, {f"x{i}": value for i, value in enumerate(values)})


@given(st.lists(st.text("abc/%+ é", min_size=1).map(lambda t: t.replace("/", "_")), min_size=1, max_size=6))
def test_unreserved_text_comes_back_from_a_variable_of_many_segments(values) -> None:
    path = "/v1/" + "/".join(quote(value, safe="") for value in values)
    joined = "/".join(values)
    # '+' is reserved: it stays as it was written, which quote() did as %2B.
    assert match(path, "/v1/{x=**}") == ("/v1/{x=**}", {"x": joined.replace("+", "%2B")})


pieces = st.sampled_from(["a", "b", "*"])


@given(
    st.lists(st.lists(pieces, min_size=1, max_size=4), min_size=1, max_size=8),
    st.lists(st.sampled_from("ab"), max_size=4),
)
def test_the_winner_is_the_one_an_exhaustive_search_ranks_first(shapes, path) -> None:
    sources = {"/" + "/".join(shape) for shape in shapes}
    fitting = [
        source
        for source in sources
        if len(parts := source[1:].split("/")) == len(path)
        and all(part in ("*", segment) for part, segment in zip(parts, path, strict=True))
    ]
    ranked = sorted(fitting, key=lambda source: [part == "*" for part in source[1:].split("/")])
    shuffled = sorted(sources)
    random.Random(7).shuffle(shuffled)
    found = match("/" + "/".join(path), *shuffled)
    assert (found[0] if found else None) == (ranked[0] if ranked else None)


@given(st.text(max_size=40))
def test_no_text_makes_the_parser_do_anything_but_parse_or_refuse(source) -> None:
    try:
        template = templates.parse(source)
    except TemplateError:
        return
    assert template.segments
