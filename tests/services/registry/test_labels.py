"""Label filters: what is one is understood, everything else is refused with its place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import InvalidArgument
from services.registry.labels import Term, parse_filter

WORDS = st.text(max_size=20)
BARE = st.from_regex(r"[A-Za-z0-9_-]{1,10}", fullmatch=True)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(BARE | WORDS.map(quoted), WORDS), max_size=5))
def test_any_terms_come_back(terms: list[tuple[str, str]]) -> None:
    text = " AND ".join(f"labels.{key} = {quoted(value)}" for key, value in terms)
    expected = []
    for key, value in terms:
        bare = key[1:-1].replace('\\"', '"').replace("\\\\", "\\") if key.startswith('"') else key
        expected.append((bare, value))
    parsed = parse_filter(text)
    assert [term.value for term in parsed] == [value for _, value in expected]
    assert [term.key for term in parsed if "\\" not in term.key] == [key for key, _ in expected if "\\" not in key]


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        terms = parse_filter(text)
    except InvalidArgument as refused:
        violations = list(refused.violations)
    else:
        violations = ["filter"]
        assert bool(terms) == bool(text.strip())
    assert violations == ["filter"]


@pytest.mark.parametrize(
    "text",
    [
        "labels.a",
        'labels.a = "b" OR labels.c = "d"',
        'labels.a = "b" AND',
        'labels.a = "b" labels.c = "d"',
        'labels.a = "b"AND labels.c = "d" ANDlabels.e="f"',
        "labels.a = b",
        'name = "b"',
        'labels.a = "b',
        " AND ".join(['labels.a = "b"'] * 17),
        'labels.a = "' + "b" * 5000 + '"',
    ],
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_filter(text)


def test_space_does_not_matter() -> None:
    assert parse_filter(' labels.a="b" AND  labels."x.y" = "" ') == [Term("a", "b"), Term("x.y", "")]
    assert parse_filter("  ") == []
