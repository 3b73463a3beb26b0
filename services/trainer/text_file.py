"""A plain text on disk, read in blocks: counted once, then taken in parts. Never holds more than a block of it."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from octavo.errors import FailedPrecondition
from octavo.v1.errors_pb2 import Reason

_BLOCK_BYTES: Final = 1 << 20


@dataclass
class TextFile:
    """A text of UTF-8 that is not empty: how many characters it has, and which. FailedPrecondition for others."""

    path: Path
    characters: int = 0
    symbols: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        is_blank = True
        for block in self._decoded():
            self.characters += len(block)
            self.symbols |= set(block)
            is_blank = is_blank and not block.strip()
        if is_blank:
            raise unusable("the text is empty; upload one with something to learn from")

    def blocks(self, begin: int, end: int) -> Iterator[str]:
        """The characters from `begin` to before `end`."""
        at = 0
        for block in self._decoded():
            if at >= end:
                return
            if part := block[max(0, begin - at) : end - at]:
                yield part
            at += len(block)

    def _decoded(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        position = 0
        with self.path.open("rb") as file:
            while True:
                block = file.read(_BLOCK_BYTES)
                waiting = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    offset = position - waiting + error.start
                    raise unusable(
                        f"byte {offset} of the text is not UTF-8 ({error.reason}); save it as UTF-8 and upload it "
                        "again",
                        offset_bytes=offset,
                    ) from error
                position += len(block)
                if text:
                    yield text
                if not block:
                    return


def unusable(message: str, **metadata: int) -> FailedPrecondition:
    """What a text or rows that cannot be learnt from are refused with."""
    error = FailedPrecondition(Reason.REASON_CORPUS_UNUSABLE, message)
    error.metadata = {key: str(value) for key, value in metadata.items()}
    return error
