"""The text of a dataset as token arrays: fetched once, tokenized once, then memory-mapped by every run that asks.

Kept by what it is made from (the text's digest, the tokenizer's spec, the split), so a second job on the same data
starts at once. Knows nothing of models or of training.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.formats.tokenizer import Tokenizer
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason

# The text is held in memory once, as bytes and as str (1 to 4 bytes a character), while it is tokenized.
TEXT_LIMIT_BYTES: Final = 1 << 30
_FORMAT: Final = 1
_FACTS: Final = "corpus.json"
_TRAIN: Final = "train.bin"
_VALIDATION: Final = "validation.bin"

Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """What a corpus is made from. `blob` is `blobs/sha256:…`; `vocab_size` counts for BYTE_BPE only."""

    blob: str
    tokenizer: pb.TokenizerKind.ValueType
    vocab_size: int
    validation_fraction: float

    @property
    def key(self) -> str:
        """Names the corpus on disk."""
        vocab_size = self.vocab_size if self.tokenizer == pb.TOKENIZER_KIND_BYTE_BPE else 0
        facts = [_FORMAT, self.blob, int(self.tokenizer), vocab_size, self.validation_fraction]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """What was counted when the corpus was made."""

    vocab_size: int
    characters: int
    train_tokens: int
    validation_tokens: int
    validation_bytes: int
    token_bytes: int


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Token arrays, memory-mapped and read-only, with the tokenizer that made them."""

    train: Tokens
    validation: Tokens
    tokenizer: Tokenizer
    facts: CorpusFacts


class CorpusCache:
    """The corpora of a trainer. Several workers may make the same one at once: the first to finish is kept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(
        self, spec: CorpusSpec, download: Callable[[str, Path], object], say: Callable[[str], None], owner: str
    ) -> Corpus:
        """The corpus of `spec`, made if it is not there yet.

        `download` fetches a blob to a path, verified; `say` hears what is being done; `owner` is who makes it, alone
        under that name. FailedPrecondition says what is wrong with the text.
        """
        final = self._directory / spec.key
        if not (final / _FACTS).is_file():
            partial = self._directory / f".{spec.key}.{owner}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                say("fetching the text")
                download(spec.blob, partial / "text")
                _make(partial, spec, say)
                _publish(partial, final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return _open(final)


def _make(directory: Path, spec: CorpusSpec, say: Callable[[str], None]) -> None:
    text = read_text(directory / "text")
    cut = int(len(text) * (1 - spec.validation_fraction))
    train, validation = text[:cut], text[cut:]
    if not train or len(validation) < 2:
        raise _unusable(
            f"{len(text)} characters cannot be split into a training and a validation part; a text of at least "
            "1,000 characters is a beginning",
            characters=len(text),
        )
    say(f"making the tokenizer from {len(text):,} characters")
    tokenizer = _tokenizer(spec, text, train)
    say("turning the text into tokens")
    parts = {_TRAIN: tokenizer.encode_corpus(train), _VALIDATION: tokenizer.encode_corpus(validation)}
    if len(parts[_VALIDATION]) < 2:
        raise _unusable(
            "the validation part has fewer than 2 tokens; use a longer text or a larger train.validation_fraction"
        )
    for name, tokens in parts.items():
        tokens.tofile(directory / name)
    facts = CorpusFacts(
        vocab_size=tokenizer.vocab_size,
        characters=len(text),
        train_tokens=len(parts[_TRAIN]),
        validation_tokens=len(parts[_VALIDATION]),
        validation_bytes=len(validation.encode()),
        token_bytes=parts[_TRAIN].itemsize,
    )
    # The end token is in tokenizer_config.json, which names it for every reader.
    tokenizer.save(directory, context_length=1)
    (directory / _FACTS).write_text(json.dumps(asdict(facts), indent=1))
    (directory / "text").unlink()


def read_text(path: Path) -> str:
    """A text of UTF-8 that is not empty; FailedPrecondition says what is wrong with any other file."""
    size_bytes = path.stat().st_size
    if size_bytes > TEXT_LIMIT_BYTES:
        raise _unusable(
            f"the text has {size_bytes:,} bytes; at most {TEXT_LIMIT_BYTES:,} can be tokenized at once",
            size_bytes=size_bytes,
        )
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unusable(
            f"byte {error.start} of the text is not UTF-8 ({error.reason}); save it as UTF-8 and upload it again",
            offset_bytes=error.start,
        ) from error
    if not text.strip():
        raise _unusable("the text is empty; upload one with something to learn from")
    return text


def _tokenizer(spec: CorpusSpec, text: str, train: str) -> Tokenizer:
    if spec.tokenizer == pb.TOKENIZER_KIND_BYTE_BPE:
        return Tokenizer.train_bpe([train], vocab_size=spec.vocab_size)
    try:
        return Tokenizer.train_characters(text)
    except InvalidArgument as error:
        raise _unusable(f"{error.message}: set train.tokenizer.kind to BYTE_BPE") from error


def _publish(partial: Path, final: Path) -> None:
    for file in partial.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    try:
        partial.rename(final)
    except OSError:
        if not (final / _FACTS).is_file():  # anything but another worker that was faster
            raise


def _open(directory: Path) -> Corpus:
    facts = CorpusFacts(**json.loads((directory / _FACTS).read_text()))
    dtype = np.dtype(np.uint16 if facts.token_bytes == 2 else np.uint32)
    return Corpus(
        train=np.memmap(directory / _TRAIN, dtype, "r", shape=(facts.train_tokens,)),
        validation=np.memmap(directory / _VALIDATION, dtype, "r", shape=(facts.validation_tokens,)),
        tokenizer=Tokenizer.load(directory),
        facts=facts,
    )


def _unusable(message: str, **metadata: int) -> FailedPrecondition:
    error = FailedPrecondition(Reason.REASON_CORPUS_UNUSABLE, message)
    error.metadata = {key: str(value) for key, value in metadata.items()}
    return error
