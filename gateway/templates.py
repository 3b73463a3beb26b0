"""Path templates of google.api.http, `/v1/{name=models/*}/versions:find`: parsing, matching, decoding.

Knows nothing of messages, methods or HTTP. Matching is on the raw, still percent-encoded path, since
`%2F` inside a segment is data and `/` is structure. The grammar is that of google/api/http.proto.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import unquote

ANY = "*"
REST = "**"

_LITERAL = re.compile(r"[A-Za-z0-9\-._~%!$&'()+,;=@]+")
_VERB = re.compile(r"[A-Za-z0-9\-._~%!$&'()+,;=@:]+")
_FIELD_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# RFC 3986 section 2.3: an escaped unreserved character is the same as the character.
_UNRESERVED_ESCAPE = re.compile(r"%(?:2[DdEe]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")
# RFC 6570 section 1.5, reserved: these stay encoded in a variable of several segments.
_RESERVED_ESCAPE = re.compile(r"%(2[1346-9A-Ca-cFf]|3[AaBbDdFf]|40|5[BbDd])")

Target = TypeVar("Target")


class TemplateError(ValueError):
    """A template breaks the grammar, or two templates answer the same paths."""


class PathError(ValueError):
    """A request's path is not a percent-encoded UTF-8 path."""


class Variable(NamedTuple):
    """A field path and the template's segments `[start, stop)` that it captures."""

    field_path: str
    start: int
    stop: int
    is_multi: bool


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: segments are literals, `*` or `**`; the verb has no colon and may be empty."""

    source: str
    segments: tuple[str, ...]
    variables: tuple[Variable, ...]
    verb: str

    def bindings(self, path: list[str]) -> dict[str, str]:
        """Field path to decoded text, for segments that match; raises PathError on what is not UTF-8."""
        rest = self.segments.index(REST) if REST in self.segments else len(self.segments)
        shift = len(path) - len(self.segments)
        bound: dict[str, str] = {}
        for name, start, stop, is_multi in self.variables:
            captured = path[start + shift * (start > rest) : stop + shift * (stop > rest)]
            bound[name] = _decoded("/".join(captured), keep_reserved=is_multi)
        return bound


def split(raw_path: str) -> list[str]:
    """The segments of a raw path; raises PathError for bad escapes and for a path that is not absolute."""
    if not raw_path.startswith("/"):
        raise PathError(f"the path {raw_path[:80]!r} does not begin with '/'")
    if "%" in raw_path:
        if _BAD_ESCAPE.search(raw_path):
            raise PathError("the path has a '%' that is not followed by two hexadecimal digits; write it as '%25'")
        raw_path = _UNRESERVED_ESCAPE.sub(lambda escape: chr(int(escape[0][1:], 16)), raw_path)
    return raw_path.split("/")[1:]


def _decoded(text: str, *, keep_reserved: bool) -> str:
    if "%" not in text:
        return text
    if keep_reserved:
        text = _RESERVED_ESCAPE.sub(r"%25\1", text)
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise PathError("the path is not UTF-8 after percent-decoding") from None


def parse(source: str) -> Template:
    """Parses a template; raises TemplateError with the place where the grammar breaks."""
    return _Parser(source).template()


class _Parser:
    """Recursive descent over one template, one method per production."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._segments: list[str] = []
        self._variables: list[Variable] = []

    def template(self) -> Template:
        self._expect("/")
        self._segment_list(in_variable=False)
        verb = ""
        if self._accept(":"):
            verb = self._token(_VERB, "a verb")
        if self._at != len(self._source):
            raise self._error("the end, '/' or ':'")
        self._check_rest()
        names = [variable.field_path for variable in self._variables]
        if len(set(names)) != len(names):
            raise TemplateError(f"{self._source!r} binds one field twice")
        return Template(self._source, tuple(self._segments), tuple(self._variables), verb)

    def _segment_list(self, *, in_variable: bool) -> None:
        self._segment(in_variable=in_variable)
        while self._accept("/"):
            self._segment(in_variable=in_variable)

    def _segment(self, *, in_variable: bool) -> None:
        if self._accept(REST):
            self._segments.append(REST)
        elif self._accept(ANY):
            self._segments.append(ANY)
        elif not in_variable and self._accept("{"):
            self._variable()
        else:
            self._segments.append(self._token(_LITERAL, "a literal, '*' or '**'"))

    def _variable(self) -> None:
        name = self._token(_FIELD_PATH, "a field path")
        start = len(self._segments)
        if self._accept("="):
            self._segment_list(in_variable=True)
        else:
            self._segments.append(ANY)
        self._expect("}")
        captured = self._segments[start:]
        is_multi = len(captured) > 1 or REST in captured
        self._variables.append(Variable(name, start, len(self._segments), is_multi))

    def _check_rest(self) -> None:
        # One '**' with only literals behind it keeps matching linear in the path's length.
        if REST in self._segments:
            behind = self._segments[self._segments.index(REST) + 1 :]
            if ANY in behind or REST in behind:
                raise TemplateError(f"{self._source!r} has a wildcard after '**'; only literals may follow it")

    def _accept(self, token: str) -> bool:
        if self._source.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise self._error(repr(token))

    def _token(self, pattern: re.Pattern[str], wanted: str) -> str:
        found = pattern.match(self._source, self._at)
        if found is None:
            raise self._error(wanted)
        self._at = found.end()
        return found[0]

    def _error(self, wanted: str) -> TemplateError:
        return TemplateError(f"{self._source!r} at character {self._at + 1}: expected {wanted}")


@dataclass(slots=True)
class _Node(Generic[Target]):
    literals: dict[str, "_Node[Target]"] = field(default_factory=dict)
    wildcard: "_Node[Target] | None" = None
    end: tuple[Template, Target] | None = None
    rests: list[tuple[list[str], Template, Target]] = field(default_factory=list)

    def child(self, segment: str) -> "_Node[Target]":
        if segment != ANY:
            return self.literals.setdefault(segment, _Node())
        if self.wildcard is None:
            self.wildcard = _Node()
        return self.wildcard

    def candidates(self, path: list[str], depth: int) -> Iterator[tuple[Template, Target]]:
        """Matches, most specific first: an exact end, a literal, `*`, then `**` with the longest tail.

        The depth of recursion is that of the templates, never that of the path.
        """
        if depth == len(path):
            if self.end is not None:
                yield self.end
        else:
            literal = self.literals.get(path[depth])
            if literal is not None:
                yield from literal.candidates(path, depth + 1)
            if self.wildcard is not None and path[depth]:
                yield from self.wildcard.candidates(path, depth + 1)
        for tail, template, target in self.rests:
            if len(path) - depth >= len(tail) and path[len(path) - len(tail) :] == tail:
                yield template, target


class Matcher(Generic[Target]):
    """Templates with what they lead to. The most specific match wins, whatever the order of adding."""

    def __init__(self) -> None:
        self._roots: dict[str, _Node[Target]] = {}
        self._verbs: tuple[str, ...] = ()

    def add(self, template: Template, target: Target) -> None:
        """Adds a template; raises TemplateError when another one answers exactly the same paths."""
        node = self._roots.setdefault(template.verb, _Node())
        # The longest verb first: ':a:b' is tried before ':b'.
        self._verbs = tuple(sorted(filter(None, self._roots), key=len, reverse=True))
        segments = list(template.segments)
        rest = segments.index(REST) if REST in segments else None
        for segment in segments[:rest]:
            node = node.child(segment)
        if rest is None:
            if node.end is not None:
                raise _duplicate(template, node.end[0])
            node.end = (template, target)
            return
        tail = segments[rest + 1 :]
        for other, existing, _ in node.rests:
            if other == tail:
                raise _duplicate(template, existing)
        node.rests.append((tail, template, target))
        node.rests.sort(key=lambda entry: len(entry[0]), reverse=True)

    def match(self, path: list[str]) -> tuple[Target, dict[str, str]] | None:
        """The target and its bindings for segments from `split`, or None; a verb's template goes first."""
        last = path[-1]
        if ":" in last:
            for verb in self._verbs:
                if last.endswith(f":{verb}"):
                    found = self._first(verb, [*path[:-1], last[: -len(verb) - 1]])
                    if found is not None:
                        return found
        return self._first("", path)

    def _first(self, verb: str, path: list[str]) -> tuple[Target, dict[str, str]] | None:
        root = self._roots.get(verb)
        if root is None:
            return None
        for template, target in root.candidates(path, 0):
            return target, template.bindings(path)
        return None


def _duplicate(template: Template, existing: Template) -> TemplateError:
    return TemplateError(f"{template.source!r} and {existing.source!r} answer the same paths")
