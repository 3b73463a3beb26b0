"""Labels: the words resources are found by, and the filter that finds them.

The filter is `labels.KEY = "VALUE"`, joined by AND; a key with other characters than letters, digits, `_` and `-`
is quoted too.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sqlalchemy import Column, Connection, bindparam, delete, insert, literal, select
from sqlalchemy.sql.elements import ColumnElement

from octavo.errors import InvalidArgument
from services.registry.schema import LABELS

MAXIMUM_COUNT = 64
_KEY_CHARACTERS = 63
_VALUE_CHARACTERS = 255
_FILTER_CHARACTERS = 4096
_FILTER_TERMS = 16

_STRING = r'"(?:[^"\\]|\\["\\])*"'
_TERM = re.compile(rf"\s*labels\.(?P<key>[A-Za-z0-9_-]+|{_STRING})\s*=\s*(?P<value>{_STRING})\s*")
_AND = re.compile(r"AND\b")
_OF_ONE = select(LABELS.c.key, LABELS.c.value).where(LABELS.c.resource == bindparam("resource")).order_by(LABELS.c.key)


class Term(NamedTuple):
    """One condition of a filter."""

    key: str
    value: str


def check(labels: Mapping[str, str], field: str) -> None:
    """Raises InvalidArgument if there are too many, or one is too long or empty."""
    if len(labels) > MAXIMUM_COUNT:
        raise InvalidArgument.field(field, f"{len(labels)} labels are too many; {MAXIMUM_COUNT} at most")
    violations = {}
    for key, value in labels.items():
        shown = key[:_KEY_CHARACTERS]
        if not 1 <= len(key) <= _KEY_CHARACTERS:
            violations[f"{field}[{shown!r}]"] = f"the key has {len(key)} characters; 1 to {_KEY_CHARACTERS}"
        elif len(value) > _VALUE_CHARACTERS:
            violations[f"{field}[{shown!r}]"] = f"the value has {len(value)} characters; {_VALUE_CHARACTERS} at most"
        elif "\0" in key + value:
            violations[f"{field}[{shown!r}]"] = "contains the character U+0000; leave it out"
    if violations:
        raise InvalidArgument.fields(violations)


def replace(connection: Connection, resource: str, labels: Mapping[str, str]) -> None:
    """Makes these the labels of a resource."""
    connection.execute(delete(LABELS).where(LABELS.c.resource == resource))
    if labels:
        rows = [{"resource": resource, "key": key, "value": value} for key, value in labels.items()]
        connection.execute(insert(LABELS), rows)


def read(connection: Connection, resources: Iterable[str]) -> dict[str, dict[str, str]]:
    """The labels of each resource that has any."""
    found: dict[str, dict[str, str]] = {}
    chosen = select(LABELS).where(LABELS.c.resource.in_(list(resources)))
    for row in connection.execute(chosen.order_by(LABELS.c.resource, LABELS.c.key)):
        found.setdefault(row.resource, {})[row.key] = row.value
    return found


def read_one(connection: Connection, resource: str) -> dict[str, str]:
    """The labels of one resource."""
    return {row.key: row.value for row in connection.execute(_OF_ONE, {"resource": resource})}


def parse_filter(text: str) -> list[Term]:
    """The terms of a filter; InvalidArgument says where it is no filter."""
    if len(text) > _FILTER_CHARACTERS:
        raise InvalidArgument.field("filter", f"{len(text)} characters; {_FILTER_CHARACTERS} at most")
    if not text.strip():
        return []
    terms: list[Term] = []
    position = 0
    while True:
        match = _TERM.match(text, position)
        if match is None or len(terms) == _FILTER_TERMS:
            raise _not_a_filter(text, position)
        terms.append(Term(_unquoted(match["key"]), _unquoted(match["value"])))
        position = match.end()
        if position == len(text):
            return terms
        joint = _AND.match(text, position)
        if joint is None:
            raise _not_a_filter(text, position)
        position = joint.end()


def holding(terms: Iterable[Term], resource: ColumnElement[str] | Column[str]) -> list[ColumnElement[bool]]:
    """One SQL condition a term: the label is there, on the resource whose name is the expression `resource`."""
    return [
        select(literal(1))
        .where(LABELS.c.resource == resource, LABELS.c.key == term.key, LABELS.c.value == term.value)
        .exists()
        for term in terms
    ]


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


def _not_a_filter(text: str, position: int) -> InvalidArgument:
    rest = text[position : position + 40]
    return InvalidArgument.field(
        "filter",
        f'from character {position + 1}, {rest!r} is not understood; it is `labels.KEY = "VALUE"`, up to '
        f"{_FILTER_TERMS} of them joined by AND",
    )
