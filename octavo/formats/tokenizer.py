"""Text to token ids and back: trained at character level or as byte-level BPE, kept as Hugging Face's files.

Knows nothing of models. tokenizer.json loads unchanged in transformers, and every text the vocabulary covers
comes back exactly, newlines and runs of spaces included. A text it does not cover is refused, never altered.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from octavo.errors import InvalidArgument, NotFound
from octavo.formats.text_pieces import cut
from octavo.v1.errors_pb2 import Reason

TOKENIZER_FILE: Final = "tokenizer.json"
TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"
END_OF_TEXT: Final = "<|endoftext|>"

# Llama 3's tokenizer.json, the largest in common use, has 17 MB.
FILE_LIMIT_BYTES: Final = 64 << 20
CHARACTER_LIMIT: Final = 1 << 16
# Every byte has a symbol of its own, and the end of a text has one.
BPE_LEAST_VOCABULARY: Final = 257
BPE_LARGEST_VOCABULARY: Final = 1 << 20

# Pieces encoded at once: enough for every core, and some 100 MB of the library's own records.
_PIECES_AT_ONCE: Final = 16
_UNKNOWN: Final = np.uint32(0xFFFF_FFFF)


class Tokenizer:
    """One vocabulary. Immutable, so threads may share it."""

    def __init__(self, backend: tokenizers.Tokenizer, *, end_token: str | None = None) -> None:
        """`end_token` is what ends a text; InvalidArgument if the vocabulary lacks it."""
        self._backend = backend
        layout = json.loads(backend.to_str())
        self._added = {row["content"]: int(row["id"]) for row in layout["added_tokens"]}
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._size = max(vocabulary.values(), default=-1) + 1
        self.end_token = end_token
        self.end_id = None if end_token is None else vocabulary.get(end_token)
        if end_token is not None and self.end_id is None:
            raise _invalid(TOKENIZER_CONFIG_FILE, f"eos_token {end_token!r} is not in the vocabulary")
        self._codes = _character_codes(layout)
        self._may_be_cut = _may_be_cut(layout)
        self._pieces = _pieces(layout, vocabulary)
        special = set(self._added.values())
        self.pieces = self._pieces and {code: piece for code, piece in self._pieces.items() if code not in special}
        """What each id that stands for text adds to it, in UTF-8; None where that depends on its neighbours."""
        self._missing = _missing_bytes(vocabulary) if _decodes_bytes(layout) else frozenset[int]()

    @classmethod
    def train_characters(cls, text: str, *, has_end: bool = False) -> Tokenizer:
        """One token per distinct symbol of `text`, in code point order; with `has_end` one more to end texts."""
        symbols = sorted(set(text))
        if not symbols or len(symbols) > CHARACTER_LIMIT:
            raise InvalidArgument.field(
                "text",
                f"{len(symbols)} distinct symbols cannot be a vocabulary; from 1 to {CHARACTER_LIMIT} can, "
                "or train byte-level BPE",
                reason=Reason.REASON_INVALID_TOKENIZER,
            )
        _require_unicode(text)
        codes = {symbol: code for code, symbol in enumerate(symbols)}
        backend = tokenizers.Tokenizer(models.WordLevel(codes, unk_token=""))
        # [\s\S], not (?s:.): Oniguruma's dot leaves newlines out whatever the flag.
        pattern = tokenizers.Regex(r"[\s\S]")
        backend.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
        backend.decoder = decoders.Fuse()
        if has_end:
            backend.add_special_tokens([END_OF_TEXT])
        return cls(backend, end_token=END_OF_TEXT if has_end else None)

    @classmethod
    def train_bpe(cls, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
        """Byte-level BPE of at most `vocab_size` tokens, `<|endoftext|>` first; encodes any Unicode text."""
        if not BPE_LEAST_VOCABULARY <= vocab_size <= BPE_LARGEST_VOCABULARY:
            raise InvalidArgument.field(
                "vocab_size",
                f"{vocab_size} is not from {BPE_LEAST_VOCABULARY} to {BPE_LARGEST_VOCABULARY}; try 4096",
                reason=Reason.REASON_INVALID_TOKENIZER,
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator((piece for text in texts for piece in cut([text])), trainer)
        return cls(backend, end_token=END_OF_TEXT)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read the tokenizer files of a bundle; NotFound or InvalidArgument where they cannot be used."""
        path, config = directory / TOKENIZER_FILE, directory / TOKENIZER_CONFIG_FILE
        if not path.is_file():
            raise NotFound(Reason.REASON_INVALID_TOKENIZER, f"the bundle has no {TOKENIZER_FILE}")
        for file in (path, config):
            if file.is_file() and file.stat().st_size > FILE_LIMIT_BYTES:
                raise _invalid(file.name, f"it is larger than {FILE_LIMIT_BYTES} bytes")
        return cls.from_bytes(path.read_bytes(), config.read_bytes() if config.is_file() else None)

    @classmethod
    def from_bytes(cls, tokenizer_json: bytes, config_json: bytes | None = None) -> Tokenizer:
        """Read the contents of tokenizer.json and, for the end token, of tokenizer_config.json."""
        try:
            backend = tokenizers.Tokenizer.from_buffer(tokenizer_json)
        except Exception as error:  # tokenizers raises bare Exception for whatever it cannot read
            raise _invalid(TOKENIZER_FILE, f"it cannot be read: {error}") from error
        # Padding and truncation settings left in the file would alter what encode returns.
        backend.no_padding()
        backend.no_truncation()
        return cls(backend, end_token=_end_token(config_json))

    @property
    def vocab_size(self) -> int:
        """Rows that a model's embedding needs: the largest id plus one."""
        return self._size

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest type that holds every id: uint16 where the vocabulary allows it."""
        return np.uint16 if self._size <= 1 << 16 else np.uint32

    @property
    def is_character_level(self) -> bool:
        return self._codes is not None

    def save(self, directory: Path, *, context_length: int) -> None:
        """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
        config: dict[str, Any] = {
            # Any other class makes transformers 5 rebuild the pre-tokenizer and lose a character level.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": context_length,
        }
        if self.end_token is not None:
            config |= {"bos_token": self.end_token, "eos_token": self.end_token}
        (directory / TOKENIZER_FILE).write_bytes(self.to_bytes())
        text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
        (directory / TOKENIZER_CONFIG_FILE).write_text(text + "\n", "utf-8")

    def to_bytes(self) -> bytes:
        """The contents of tokenizer.json."""
        return (self._backend.to_str(pretty=False) + "\n").encode()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; InvalidArgument names symbols that have none, and where they stand."""
        if self._codes is not None:
            codes: list[int] = self._encode_characters(text, self._codes, 0).tolist()
            return codes
        self._require_bytes(text, 0)
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_corpus(self, text: str) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The same ids as `encode`, in the type of `dtype`; BPE uses every core."""
        return np.concatenate([np.empty(0, self.dtype), *self.encode_blocks([text])])

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[npt.NDArray[np.unsignedinteger[Any]]]:
        """The ids of a text that comes in blocks, in parts; together those of the whole. Holds a few MB at a time."""
        # Other pre-tokenizers may join what a cut would separate.
        pieces = cut(blocks) if self._codes is not None or self._may_be_cut else iter(["".join(blocks)])
        start = 0
        while some := list(islice(pieces, _PIECES_AT_ONCE)):
            yield from self.encode_batch(some, start=start)
            start += sum(map(len, some))

    def encode_batch(self, texts: Sequence[str], *, start: int = 0) -> list[npt.NDArray[np.unsignedinteger[Any]]]:
        """The ids of each text; `start` is where the first one stands, for what is said of symbols without an id."""
        if self._codes is not None:
            return [self._encode_characters(text, self._codes, start).astype(self.dtype) for text in texts]
        for text in texts:
            self._require_bytes(text, start)
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, self.dtype) for encoding in encodings]

    def offsets(self, text: str) -> list[int]:
        """Where each id of `encode(text)` begins in `text`, in characters."""
        if self._codes is not None:
            starts, start = [], 0
            for code in self.encode(text):
                starts.append(start)
                start += len(self.token(code))
            return starts
        return [start for start, _ in self._backend.encode(text, add_special_tokens=False).offsets]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. InvalidArgument for an id out of range."""
        for position, code in enumerate(ids):
            if not 0 <= code < self._size:
                raise InvalidArgument.field(f"ids[{position}]", f"{code} is not an id from 0 to {self._size - 1}")
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def size_bytes(self, ids: Sequence[int]) -> int:
        """Bytes of the text of `ids` in UTF-8; special tokens are no text."""
        if self.pieces is None:
            return len(self.decode(ids, skip_special=True).encode())
        return sum(len(self.pieces.get(code, b"")) for code in ids)

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder for one sequence of ids that arrive one at a time."""
        hidden = frozenset(self._added.values()) if skip_special else frozenset[int]()
        if self._pieces is None:
            return _LibraryDecoder(self._backend, hidden)
        return StreamDecoder(self._pieces, hidden)

    def token(self, code: int) -> str:
        """How the vocabulary writes this id; for display, not for decoding."""
        return self._backend.id_to_token(code) or ""

    def _encode_characters(self, text: str, codes: npt.NDArray[np.uint32], start: int) -> npt.NDArray[np.uint32]:
        if self.end_token is None or self.end_token not in text:
            return self._look_up(text, codes, start=start)
        parts: list[npt.NDArray[np.uint32]] = []
        for part in text.split(self.end_token):
            parts += [self._look_up(part, codes, start=start), np.array([self.end_id], np.uint32)]
            start += len(part) + len(self.end_token)
        return np.concatenate(parts[:-1])

    def _look_up(self, text: str, codes: npt.NDArray[np.uint32], *, start: int) -> npt.NDArray[np.uint32]:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        found = codes[np.minimum(points, len(codes) - 1)]
        unknown = found == _UNKNOWN
        if unknown.any():
            raise self._unknown_symbols(text, np.flatnonzero(unknown), start)
        return found

    def _require_bytes(self, text: str, start: int) -> None:
        _require_unicode(text)
        if self._missing:
            unknown = [index for index, symbol in enumerate(text) if self._missing.intersection(symbol.encode())]
            if unknown:
                raise self._unknown_symbols(text, np.array(unknown), start)

    def _unknown_symbols(self, text: str, positions: npt.NDArray[np.intp], start: int) -> InvalidArgument:
        first: dict[str, int] = {}
        for position in positions[:10_000].tolist():
            first.setdefault(text[position], start + position)
        shown = ", ".join(f"{symbol!r} at {position}" for symbol, position in list(first.items())[:8])
        known = "".join(symbol for symbol in sorted(self._backend.get_vocab()) if len(symbol) == 1)
        right = f"use only {known!r}" if len(known) <= 128 else f"use the {self._size} symbols it was trained on"
        return InvalidArgument.field(
            "text",
            f"{len(positions)} characters are not in the vocabulary: {shown}; {right}, or a model with a "
            "byte-level tokenizer",
            reason=Reason.REASON_UNKNOWN_SYMBOL,
            symbols="".join(list(first)[:8]),
            positions=",".join(map(str, list(first.values())[:8])),
        )


class StreamDecoder:
    """Text of ids that arrive one at a time; only ever emits whole characters.

    The parts, `finish()` included, join to what `Tokenizer.decode` says of all ids together.
    """

    def __init__(self, pieces: Mapping[int, bytes], hidden: frozenset[int]) -> None:
        self._pieces = pieces
        self._hidden = hidden
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, code: int) -> str:
        """The text that `code` completes, often empty in the middle of a character."""
        return "" if code in self._hidden else self._utf8.decode(self._pieces.get(code, b""))

    def finish(self) -> str:
        """What is left: U+FFFD for bytes that never became a character."""
        return self._utf8.decode(b"", final=True)


class _LibraryDecoder(StreamDecoder):
    """For vocabularies whose decoder looks at neighbours (Metaspace, byte fallback): decodes a growing tail."""

    def __init__(self, backend: tokenizers.Tokenizer, hidden: frozenset[int]) -> None:
        super().__init__({}, hidden)
        self._backend = backend
        self._ids: list[int] = []
        # ids before `_settled` are spoken for; the tail from there on is decoded again with every id, because
        # the first token of a text may lose its leading space.
        self._settled = 0
        self._spoken = 0

    def push(self, code: int) -> str:
        if code in self._hidden:
            return ""
        self._ids.append(code)
        before = self._text(self._settled, self._spoken)
        now = self._text(self._settled, len(self._ids))
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self._settled, self._spoken = self._spoken, len(self._ids)
        return now[len(before) :]

    def finish(self) -> str:
        before = self._text(self._settled, self._spoken)
        now = self._text(self._settled, len(self._ids))
        self._spoken = len(self._ids)
        return now[len(before) :]

    def _text(self, start: int, stop: int) -> str:
        return self._backend.decode(self._ids[start:stop], skip_special_tokens=False)


def _character_codes(layout: Mapping[str, Any]) -> npt.NDArray[np.uint32] | None:
    """id by code point with a last entry of unknown, if this is a character level of our making."""
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    model = layout["model"]
    plain = layout["pre_tokenizer"] == split and layout["normalizer"] is None
    if model.get("type") != "WordLevel" or not plain or any(len(symbol) != 1 for symbol in model["vocab"]):
        return None
    codes = np.full(max(map(ord, model["vocab"]), default=0) + 2, _UNKNOWN, np.uint32)
    for symbol, code in model["vocab"].items():
        codes[ord(symbol)] = code
    return codes


def _may_be_cut(layout: Mapping[str, Any]) -> bool:
    """Whether the pre-tokenizer is GPT-2's, for which `cut` is right, and nothing comes before it."""
    before = layout["pre_tokenizer"] or {}
    is_plain = before.get("type") == "ByteLevel" and before.get("use_regex", True)
    return is_plain and not before.get("add_prefix_space", False) and layout["normalizer"] is None


def _decodes_bytes(layout: Mapping[str, Any]) -> bool:
    return (layout["decoder"] or {}).get("type") == "ByteLevel"


def _pieces(layout: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[int, bytes] | None:
    """The bytes of every id, where they do not depend on neighbours."""
    if _decodes_bytes(layout):
        alphabet = _byte_alphabet()
        return {
            code: bytes(alphabet[symbol] for symbol in token)
            if all(symbol in alphabet for symbol in token)
            else token.encode()
            for token, code in vocabulary.items()
        }
    if (layout["decoder"] or {}).get("type") == "Fuse":
        return {code: token.encode() for token, code in vocabulary.items()}
    return None


def _byte_alphabet() -> dict[str, int]:
    """The symbol of each byte in GPT-2's byte-level vocabularies: printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _missing_bytes(vocabulary: Mapping[str, int]) -> frozenset[int]:
    return frozenset(byte for symbol, byte in _byte_alphabet().items() if symbol not in vocabulary)


def _end_token(config_json: bytes | None) -> str | None:
    if config_json is None:
        return None
    try:
        config = json.loads(config_json)
    except (ValueError, RecursionError) as error:
        raise _invalid(TOKENIZER_CONFIG_FILE, f"it is not JSON: {error}") from error
    token = config.get("eos_token") if isinstance(config, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    if token is None or isinstance(token, str):
        return token
    raise _invalid(TOKENIZER_CONFIG_FILE, f"eos_token {token!r} is not a string")


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument.field(
            "text",
            f"{text[error.start]!r} at {error.start} is half a surrogate pair, not a character; send valid Unicode",
            reason=Reason.REASON_UNKNOWN_SYMBOL,
        ) from error


def _invalid(file: str, text: str) -> InvalidArgument:
    return InvalidArgument.field(file, text, reason=Reason.REASON_INVALID_TOKENIZER)
