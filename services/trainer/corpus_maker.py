"""Makes a corpus in a directory: reads the content a few times from disk, tokenizes it once, holds little of it.

What it leaves is whole or not there: the facts, with the digest of every other file, are written last.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from octavo.errors import InvalidArgument
from octavo.formats.text_pieces import cut as pieces
from octavo.formats.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from octavo.v1 import trainer_pb2 as pb
from services.trainer.corpus import TRAIN, VALIDATION, CorpusFacts, CorpusSpec
from services.trainer.row_file import Exchange, RowFile
from services.trainer.text_file import TextFile, unusable
from services.trainer.token_rows import Tokens

# A vocabulary is learnt from this much text at most, taken evenly from the whole.
_VOCABULARY_CHARACTERS: Final = 50_000_000
_ROWS_AT_ONCE: Final = 1024
_SAY_INTERVAL_S: Final = 1.0

Say = Callable[[str], None]


def make_corpus(content: Path, directory: Path, spec: CorpusSpec, say: Say) -> None:
    """Write the corpus of `content` into an empty directory. FailedPrecondition says what is wrong with the content.

    `say` hears what is being done, every second or so, and may raise to stop it.
    """
    if spec.data is None:
        facts = _make_text(content, directory, spec, say)
    else:
        facts = _make_rows(content, directory, spec, spec.data, say)
    facts.write(directory)


def _make_text(content: Path, directory: Path, spec: CorpusSpec, say: Say) -> CorpusFacts:
    say("reading the text")
    text = TextFile(content)
    cut = int(text.characters * (1 - spec.validation_fraction))
    if not cut or text.characters - cut < 2:
        raise unusable(
            f"{text.characters} characters cannot be split into a training and a validation part; a text of at least "
            "1,000 characters is a beginning",
            characters=text.characters,
        )
    say(f"making the tokenizer from {text.characters:,} characters")
    tokenizer = _tokenizer(spec, text.symbols, cut, lambda: pieces(text.blocks(0, cut)), has_end=False)
    progress = _Progress(say, text.characters)
    validation_bytes = 0

    def blocks(begin: int, end: int) -> Iterator[str]:
        nonlocal validation_bytes
        for block in text.blocks(begin, end):
            progress.advance(len(block))
            validation_bytes += len(block.encode()) if begin else 0
            yield block

    with _Part(directory, TRAIN) as train, _Part(directory, VALIDATION) as validation:
        for part, begin, end in ((train, 0, cut), (validation, cut, text.characters)):
            for tokens in tokenizer.encode_blocks(blocks(begin, end)):
                part.add(tokens)
    if validation.token_count < 2:
        raise unusable(
            "the validation part has fewer than 2 tokens; use a longer text or a larger train.validation_fraction"
        )
    return CorpusFacts(
        vocab_size=tokenizer.vocab_size,
        characters=text.characters,
        train_tokens=train.token_count,
        validation_tokens=validation.token_count,
        validation_bytes=validation_bytes,
        token_bytes=np.dtype(tokenizer.dtype).itemsize,
        files=_save(directory, tokenizer) | train.digests | validation.digests,
    )


def _make_rows(content: Path, directory: Path, spec: CorpusSpec, data: pb.DataSpec, say: Say) -> CorpusFacts:
    say("reading the rows")
    rows = RowFile(content, spec.form, data, spec.validation_fraction)
    say(f"making the tokenizer from {rows.characters:,} characters")
    tokenizer = _tokenizer(spec, rows.symbols, rows.characters, lambda: _training_texts(rows), has_end=True)
    progress = _Progress(say, rows.characters)
    with _RowPart(directory, TRAIN, tokenizer) as train, _RowPart(directory, VALIDATION, tokenizer) as validation:
        exchanges = rows.exchanges()
        while some := list(islice(exchanges, _ROWS_AT_ONCE)):
            prompts = tokenizer.encode_batch([one.prompt for one in some])
            answers = tokenizer.encode_batch([one.answer for one in some])
            for one, prompt, answer in zip(some, prompts, answers, strict=True):
                (validation if one.is_validation else train).add_row(one, prompt, answer)
            progress.advance(sum(len(one.prompt) + len(one.answer) for one in some))
    lengths = np.array(train.lengths + validation.lengths)
    return CorpusFacts(
        vocab_size=tokenizer.vocab_size,
        characters=rows.characters,
        train_tokens=train.token_count,
        validation_tokens=validation.token_count,
        validation_bytes=validation.answer_bytes,
        token_bytes=np.dtype(tokenizer.dtype).itemsize,
        train_rows=len(train.lengths),
        validation_rows=len(validation.lengths),
        longest_row=int(lengths.max()),
        usual_row=int(np.quantile(lengths, 0.99, method="inverted_cdf")),
        dropped_rows=dict(rows.dropped),
        files=_save(directory, tokenizer) | train.digests | validation.digests,
    )


def _training_texts(rows: RowFile) -> Iterator[str]:
    for one in rows.exchanges():
        if not one.is_validation:
            yield one.prompt
            yield one.answer


def _tokenizer(
    spec: CorpusSpec, symbols: set[str], characters: int, texts: Callable[[], Iterator[str]], *, has_end: bool
) -> Tokenizer:
    """From all symbols at character level, so that validation has no other; else from the training part alone."""
    if spec.tokenizer == pb.TOKENIZER_KIND_BYTE_BPE:
        stride = -(-characters // _VOCABULARY_CHARACTERS)
        return Tokenizer.train_bpe(islice(texts(), 0, None, stride), vocab_size=spec.vocab_size)
    try:
        return Tokenizer.train_characters("".join(sorted(symbols)), has_end=has_end)
    except InvalidArgument as error:
        raise unusable(f"{error.message}: set train.tokenizer.kind to BYTE_BPE") from error


def _save(directory: Path, tokenizer: Tokenizer) -> dict[str, str]:
    # The end token is in tokenizer_config.json, which names it for every reader.
    tokenizer.save(directory, context_length=1)
    names = (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}


class _File:
    """A file that is only appended to, with its digest."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self.name = path.name
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.sha256.update(data)

    def close(self) -> None:
        self._file.close()


class _Part:
    """The tokens of the training or the validation part, written as they come."""

    def __init__(self, directory: Path, part: str) -> None:
        self._directory = directory
        self._part = part
        self._files: list[_File] = []
        self._stack = ExitStack()
        self._tokens = self._new_file("bin")
        self.token_count = 0

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of each file, by name."""
        return {file.name: file.sha256.hexdigest() for file in self._files}

    def add(self, tokens: Tokens) -> None:
        """Append tokens."""
        self._tokens.write(tokens.tobytes())
        self.token_count += len(tokens)

    def _new_file(self, kind: str) -> _File:
        file = _File(self._directory / f"{self._part}.{kind}")
        self._stack.callback(file.close)
        self._files.append(file)
        return file


class _RowPart(_Part):
    """A part made of rows, each ended by the end token."""

    def __init__(self, directory: Path, part: str, tokenizer: Tokenizer) -> None:
        super().__init__(directory, part)
        self._end = np.array([tokenizer.end_id], tokenizer.dtype)
        self._ends, self._prompts = self._new_file("ends"), self._new_file("prompts")
        self.lengths: list[int] = []
        self.answer_bytes = 0

    def __enter__(self) -> _RowPart:
        return self

    def add_row(self, exchange: Exchange, prompt: Tokens, answer: Tokens) -> None:
        """Append a row and its end."""
        self.add(np.concatenate((prompt, answer, self._end)))
        self._ends.write(np.int64(self.token_count).tobytes())
        self._prompts.write(np.uint32(len(prompt)).tobytes())
        self.lengths.append(len(prompt) + len(answer) + 1)
        self.answer_bytes += len(exchange.answer.encode())


class _Progress:
    """Says every second how much is done."""

    def __init__(self, say: Say, total: int) -> None:
        self._say = say
        self._total = total
        self._done = 0
        self._said_at = 0.0

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said_at > _SAY_INTERVAL_S:
            self._said_at = time.monotonic()
            self._say(f"turning the text into tokens: {self._done / max(1, self._total):.0%}")
