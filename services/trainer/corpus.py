"""The tokens of a dataset on disk: arrays that runs map into memory, verified when they are opened.

Kept by what they are made from (the content's digest, how it is read, the tokenizer's spec, the split), so a second
job on the same data starts at once. Knows nothing of models or of training.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from octavo.formats.tokenizer import Tokenizer
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.text_file import unusable
from services.trainer.token_rows import TokenRows, Tokens

# The text is held in memory once, as bytes and as str (1 to 4 bytes a character), where it is read as a whole.
TEXT_LIMIT_BYTES: Final = 1 << 30
FACTS: Final = "corpus.json"
TRAIN: Final = "train"
VALIDATION: Final = "validation"
_FORMAT: Final = 2


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """What a corpus is made from. `blob` is `blobs/sha256:…`; `vocab_size` counts for BYTE_BPE only.

    `data`, resolved, says how rows become examples; None for plain text.
    """

    blob: str
    tokenizer: pb.TokenizerKind.ValueType
    vocab_size: int
    validation_fraction: float
    form: datasets_pb2.DatasetFormat.ValueType = datasets_pb2.DATASET_FORMAT_TEXT
    data: pb.DataSpec | None = None

    @classmethod
    def of(cls, spec: pb.TrainSpec, dataset: datasets_pb2.Dataset) -> CorpusSpec:
        """What a resolved spec makes of its dataset."""
        return cls(
            blob=dataset.blob,
            tokenizer=spec.tokenizer.kind,
            vocab_size=spec.tokenizer.vocab_size,
            validation_fraction=spec.validation_fraction,
            form=dataset.format,
            data=spec.data if spec.HasField("data") else None,
        )

    @property
    def key(self) -> str:
        """Names the corpus on disk."""
        vocab_size = self.vocab_size if self.tokenizer == pb.TOKENIZER_KIND_BYTE_BPE else 0
        facts: list[Any] = [_FORMAT, self.blob, int(self.form), int(self.tokenizer), vocab_size]
        facts.append(self.validation_fraction)
        if self.data is not None:
            # What is learnt of a row, and how rows share sequences, is no matter of their tokens.
            data = self.data
            facts += [data.instruction_column, data.input_column, data.answer_column, data.text_column, data.template]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """What was counted when the corpus was made.

    `usual_row` is the length in tokens that 99 of 100 rows do not exceed; `files` are digests by name.
    """

    vocab_size: int
    characters: int
    train_tokens: int
    validation_tokens: int
    validation_bytes: int
    token_bytes: int
    train_rows: int = 0
    validation_rows: int = 0
    longest_row: int = 0
    usual_row: int = 0
    dropped_rows: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Into the directory of the corpus, as its last file."""
        (directory / FACTS).write_text(json.dumps(asdict(self), indent=1))


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Token arrays, memory-mapped and read-only, with the tokenizer that made them.

    `rows` says where each row of the training and the validation part ends; None for plain text. As long as `hold`
    lives, the corpus stays on disk.
    """

    train: Tokens
    validation: Tokens
    rows: tuple[TokenRows, TokenRows] | None
    tokenizer: Tokenizer
    facts: CorpusFacts
    hold: object

    @classmethod
    def open(cls, directory: Path, hold: object) -> Corpus:
        """A corpus of which every byte is as it was made. OSError or ValueError where it is not."""
        facts = CorpusFacts(**json.loads((directory / FACTS).read_bytes()))
        for name, digest in facts.files.items():
            with (directory / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise ValueError(f"{directory / name} is not as it was written")
        tokenizer = Tokenizer.load(directory)
        train, validation = (np.memmap(directory / f"{part}.bin", tokenizer.dtype, "r") for part in (TRAIN, VALIDATION))
        rows = None
        if facts.train_rows:
            rows = _rows(directory, TRAIN, train, tokenizer), _rows(directory, VALIDATION, validation, tokenizer)
        return cls(train=train, validation=validation, rows=rows, tokenizer=tokenizer, facts=facts, hold=hold)


def _rows(directory: Path, part: str, tokens: Tokens, tokenizer: Tokenizer) -> TokenRows:
    if tokenizer.end_id is None:
        raise ValueError(f"the tokenizer of {directory} has no token that ends an answer")
    return TokenRows(
        tokens=tokens,
        ends=np.fromfile(directory / f"{part}.ends", np.int64),
        prompts=np.fromfile(directory / f"{part}.prompts", np.uint32),
        end_id=tokenizer.end_id,
    )


def read_text(path: Path) -> str:
    """A text of UTF-8 that is not empty; FailedPrecondition says what is wrong with any other file."""
    size_bytes = path.stat().st_size
    if size_bytes > TEXT_LIMIT_BYTES:
        raise unusable(
            f"the text has {size_bytes:,} bytes; at most {TEXT_LIMIT_BYTES:,} can be read at once",
            size_bytes=size_bytes,
        )
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise unusable(
            f"byte {error.start} of the text is not UTF-8 ({error.reason}); save it as UTF-8 and upload it again",
            offset_bytes=error.start,
        ) from error
    if not text.strip():
        raise unusable("the text is empty; upload one with something to learn from")
    return text
