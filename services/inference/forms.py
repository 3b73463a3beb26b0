"""The forms a text can be held to, compiled against one model's vocabulary and kept while they are in use.

Knows schemas, expressions, grammars and choices; nothing of sequences. The library that compiles them bounds its own
work by fuel; whatever it refuses becomes the caller's wrong field.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray

from octavo.errors import InvalidArgument
from octavo.formats.tokenizer import Tokenizer
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import GenerationParameters, StructuredOutput
from services.inference.constraint import FIELD, NOTHING_FITS, Constraint, Mask, complaint_of, next_tokens, refused

SIZE_LIMIT_BYTES = 1 << 17
CHOICE_LIMIT = 1024
COMPILE_LIMIT_S = 5.0
KEPT = 32
"""Compiled forms that a model keeps, the ones last used."""
SEARCH_LIMIT = 256
"""Steps after which the search for one complete text gives up; each takes 20 to 200 µs."""

# Half a millisecond of lexing and a millisecond of parsing per token stay usual; the default would let a hostile form
# hold the step of all rows for 15 ms, and 250,000 states of 2 kB each.
LIMITS = LLParserLimits(step_lexer_fuel=100_000, step_max_items=20_000, max_lexer_states=20_000, verbose_errors=False)

# Free white space lets a small model go on with spaces for ever: one may stand where json.dumps writes one.
JSON_OPTIONS: dict[str, str | bool] = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}


class Vocabulary:
    """A model's tokens as the library sees them: their bytes, and one more token that stands for the end.

    The end tokens, special tokens and unused rows of the model have no bytes, so that they are never part of a text.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self.size = vocab_size
        self.eos_token_id = vocab_size
        self.special_token_ids = [vocab_size]
        pieces = tokenizer.pieces or _pieces_alone(tokenizer)
        pieces = {code: piece for code, piece in pieces.items() if code not in end_ids}
        self.tokens = [pieces.get(code, b"") for code in range(vocab_size)] + [b"<end>"]
        self.alphabet = _alphabet(tokenizer, pieces)
        """The only characters there are, as a character class; empty where that is not how texts are written."""
        # What a form leaves no choice about is written in the tokenizer's own way, where it can write everything.
        writes_all = tokenizer.pieces is not None and {bytes([byte]) for byte in range(256)} <= set(pieces.values())
        self.options = "" if writes_all else '%llguidance {"no_forcing": true}\n'
        self.library = LLTokenizer(self)  # type: ignore[arg-type] # it asks for what is above
        closing = np.array([piece[:1] in _CLOSING for piece in self.tokens[:-1]], bool)
        self.order = np.argsort(~closing, kind="stable")
        """Token ids, those that close something first."""

    def __call__(self, text: str) -> list[int]:
        """How the model's own tokenizer writes `text`; as far as it can."""
        try:
            return self._tokenizer.encode(text)
        except InvalidArgument as error:
            known = int(error.metadata["positions"].partition(",")[0])
            return self._tokenizer.encode(text[:known])


@dataclass(frozen=True, slots=True)
class Form:
    """A compiled form: `matcher` stands where a text begins, `first` is what may come there."""

    matcher: LLMatcher
    first: Mask

    def constraint(self, closings: Collection[int]) -> Constraint:
        """One sequence's way through the form; the tokens `closings` end it."""
        return Constraint(self.matcher.deep_copy(), self.first, closings)

    def check(self, parameters: GenerationParameters) -> None:
        """Raises InvalidArgument where other fields leave no text that has this form."""
        wrong = {}
        forbidden = [token_id for token_id, bias in parameters.logit_bias.items() if bias <= -100]
        rest = self.first.copy()
        rest[forbidden] = False
        if not rest.any():
            wrong["parameters.logit_bias"] = "forbids every token that the structured output may begin with"
        if self.constraint(parameters.stop_token_ids).failure:
            field = "parameters.stop_token_ids"
            wrong[field] = "has every token that the structured output may begin with"
        beginning = self.matcher.deep_copy().compute_ff_bytes().decode(errors="ignore")
        for index, stop in enumerate(parameters.stop):
            if all(stop in text for text in parameters.structured_output.choices.texts or [beginning]):
                wrong[f"parameters.stop[{index}]"] = "is in every text that has the form, and would cut each short"
        if wrong:
            raise InvalidArgument.fields(wrong)


class Forms:
    """The forms of one model. `find` is for the event loop."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int]) -> None:
        self._given = tokenizer, vocab_size, end_ids
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[bytes, Form] = OrderedDict()
        self._lock = Lock()

    async def find(self, wanted: StructuredOutput) -> Form:
        """The form, compiled beside the event loop unless it is kept. Raises InvalidArgument with what is wrong."""
        key = wanted.SerializeToString(deterministic=True)
        if form := self._kept.get(key):
            self._kept.move_to_end(key)
            return form
        _check_size(wanted)
        try:
            async with asyncio.timeout(COMPILE_LIMIT_S):
                form = await asyncio.to_thread(self.compile, wanted)
        except TimeoutError:
            raise _limited(wanted, f"took more than {COMPILE_LIMIT_S:g} s to compile; make it simpler") from None
        self._kept[key] = form
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return form

    def compile(self, wanted: StructuredOutput) -> Form:
        """The form. Blocking, from any thread. Raises InvalidArgument where no text of the model can have it."""
        with self._lock:
            self._vocabulary = vocabulary = self._vocabulary or Vocabulary(*self._given)
        field = f"{FIELD}.{wanted.WhichOneof('form')}"
        try:
            grammar = _grammar(wanted, vocabulary)
        except InvalidArgument:
            raise
        except Exception as error:  # the library's converters raise Exception and ValueError of their own
            raise InvalidArgument.field(field, f"is not one: {error}") from error
        grammar = LLMatcher.grammar_from_lark(vocabulary.options + grammar)
        matcher = LLMatcher(vocabulary.library, grammar, log_level=0, limits=LIMITS)
        first = next_tokens(matcher.deep_copy(), vocabulary.size)
        if complaint := complaint_of(matcher) or _unreachable(matcher, vocabulary):
            raise refused(field, f"cannot be honoured: {complaint}")
        if first[-1] and not first[:-1].any():
            raise InvalidArgument.field(field, "only the empty text has this form; let it have at least one character")
        return Form(matcher, first)


def _grammar(wanted: StructuredOutput, vocabulary: Vocabulary) -> str:
    """A form in the library's dialect of Lark."""
    match wanted.WhichOneof("form"):
        case "json_schema":
            return f"start: %json {_schema(wanted.json_schema)}"
        case "regex":
            return _regex_grammar(wanted.regex, vocabulary)
        case "grammar":
            return gbnf_to_lark(wanted.grammar)
        case _:
            return _regex_grammar("|".join(map(_escaped, _choices(wanted, vocabulary))), vocabulary)


def _regex_grammar(regex: str, vocabulary: Vocabulary) -> str:
    """The whole text matches `regex`, and is made of what the vocabulary has: no way leads into what it lacks."""
    body = f"/{regex_to_lark(regex, 'd')}/"
    if vocabulary.alphabet:
        body += f" & /[{vocabulary.alphabet}]*/"
    return f"start: TEXT\nTEXT: {body}"


def _schema(text: str) -> str:
    """A schema as the library takes it. Raises InvalidArgument for what is no schema."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument.field(f"{FIELD}.json_schema", f"is not JSON: {error}") from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidArgument.field(f"{FIELD}.json_schema", 'is not a schema; send an object, {"type": "object"} say')
    options = schema.get("x-guidance", {})
    return json.dumps(schema | {"x-guidance": JSON_OPTIONS | options if isinstance(options, dict) else options})


def _choices(wanted: StructuredOutput, vocabulary: Vocabulary) -> list[str]:
    texts = list(wanted.choices.texts)
    field = f"{FIELD}.choices.texts"
    if not 1 <= len(texts) <= CHOICE_LIMIT:
        raise InvalidArgument.field(field, f"{len(texts)} texts; send 1 to {CHOICE_LIMIT}")
    for index, text in enumerate(texts):
        if not text:
            raise InvalidArgument.field(f"{field}[{index}]", "is empty; send at least one character")
        if sum(len(vocabulary.tokens[code]) for code in vocabulary(text)) < len(text.encode()):
            raise InvalidArgument.field(f"{field}[{index}]", NOTHING_FITS, reason=Reason.REASON_UNKNOWN_SYMBOL)
    return texts


def _unreachable(start: LLMatcher, vocabulary: Vocabulary) -> str:
    """Why no text of the model has the form; empty if one has, or the search for one gave up."""
    ways = [_ways(start.deep_copy(), vocabulary)]
    for _ in range(SEARCH_LIMIT):
        matcher = next(ways[-1], None)
        if matcher is None:
            ways.pop()
            if not ways:
                return NOTHING_FITS
        elif complaint := complaint_of(matcher):
            return complaint
        elif matcher.is_accepting():
            return ""
        else:
            ways.append(_ways(matcher, vocabulary))
    return ""


def _ways(matcher: LLMatcher, vocabulary: Vocabulary) -> Iterator[LLMatcher]:
    """The matcher behind each token that may come next; the matcher itself where it is at an end or fails."""
    allowed = next_tokens(matcher, vocabulary.size)
    if complaint_of(matcher) == NOTHING_FITS:
        return
    if matcher.is_accepting() or matcher.is_error():
        yield matcher
        return
    order: NDArray[np.int64] = vocabulary.order
    for token_id in order[allowed[order]]:
        way = matcher.deep_copy()
        way.consume_token(int(token_id))
        yield way


def _check_size(wanted: StructuredOutput) -> None:
    if wanted.ByteSize() > SIZE_LIMIT_BYTES:
        raise _limited(wanted, f"{wanted.ByteSize()} bytes are more than {SIZE_LIMIT_BYTES}")


def _limited(wanted: StructuredOutput, complaint: str) -> InvalidArgument:
    return InvalidArgument.field(f"{FIELD}.{wanted.WhichOneof('form')}", complaint, reason=Reason.REASON_LIMIT_EXCEEDED)


def _pieces_alone(tokenizer: Tokenizer) -> dict[int, bytes]:
    """The bytes of the tokens whose text depends on neighbours, as they are in the middle of a text."""
    library = LLTokenizer(tokenizer.to_bytes().decode())
    return {
        code: library.decode_bytes([code]) for code in range(library.vocab_size) if not library.is_special_token(code)
    }


def _alphabet(tokenizer: Tokenizer, pieces: Mapping[int, bytes]) -> str:
    """The characters of a vocabulary that has no others, for a character class."""
    if not tokenizer.is_character_level:
        return ""
    return "".join(_escaped(piece.decode()) for piece in pieces.values())


def _escaped(text: str) -> str:
    return "".join(f"\\x{{{ord(symbol):x}}}" for symbol in text)


_CLOSING = (b'"', b"}", b"]", b")")
