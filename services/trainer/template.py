"""A text with `{column}` in the place of values: what a row is asked with. Nothing is computed.

Values are put in as they are: braces in them mean nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from octavo.errors import InvalidArgument

MAX_CHARACTERS: Final = 10_000
_PARAGRAPHS: Final = "\n\n"
_PART: Final = re.compile(r"(\{\{|\}\})|\{([^{}]+)\}|([{}])")


class Template:
    """A parsed template."""

    def __init__(self, text: str) -> None:
        """InvalidArgument, on no field, where braces do not match or the text is too long."""
        if len(text) > MAX_CHARACTERS:
            raise InvalidArgument.field("", f"has {len(text)} characters; at most {MAX_CHARACTERS}")
        self._paragraphs = [_parts(paragraph) for paragraph in text.split(_PARAGRAPHS)]

    @property
    def columns(self) -> list[str]:
        """The names in braces, each once, in order."""
        return list(dict.fromkeys(name for parts in self._paragraphs for _, name in parts if name))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with values; a paragraph is left out where it names columns and all of them are empty."""
        kept = []
        for parts in self._paragraphs:
            names = [name for _, name in parts if name]
            if not names or any(values.get(name) for name in names):
                kept.append("".join(values.get(name, "") if name else literal for literal, name in parts))
        return _PARAGRAPHS.join(kept)


def text_of(value: Any) -> str:
    """A value of a row as text: strings as they are, nothing for null, the rest as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _parts(paragraph: str) -> list[tuple[str, str]]:
    """Literals and names in turn, each as (literal, "") or ("", name)."""
    parts: list[tuple[str, str]] = []
    end = 0
    for match in _PART.finditer(paragraph):
        parts.append((paragraph[end : match.start()], ""))
        doubled, name, single = match.groups()
        if single:
            raise InvalidArgument.field("", f"has a single {single!r}; write {single * 2!r} for a brace")
        parts.append((doubled[0], "") if doubled else ("", name))
        end = match.end()
    parts.append((paragraph[end:], ""))
    return [part for part in parts if part != ("", "")]
