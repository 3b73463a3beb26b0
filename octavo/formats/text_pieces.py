"""A text in pieces that encode to what the whole encodes to, however long it is: none of it has to be held at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

_PIECE_CHARACTERS: Final = 1 << 16
# Where a text has no place to be cut for so long, it is cut anywhere: memory stays bounded, a word may come apart.
_LONGEST_PIECE: Final = 1 << 20


def cut(blocks: Iterable[str]) -> Iterator[str]:
    """A text that comes in blocks in pieces of about 64 k characters, cut before a space behind a letter or digit.

    No match of the GPT-2 pattern spans such a place, so pieces encode to what the whole encodes to.
    """
    pending, start = "", 0
    for block in blocks:
        pending, start = pending[start:] + block, 0
        while end := _place_to_cut(pending, start):
            yield pending[start:end]
            start = end
    if start < len(pending):
        yield pending[start:]


def _place_to_cut(text: str, start: int) -> int:
    """Where the piece from `start` on ends; 0 where that cannot be said yet."""
    if len(text) - start <= _PIECE_CHARACTERS:
        return 0
    end, last = start + _PIECE_CHARACTERS, start + _LONGEST_PIECE
    while (end := text.find(" ", end, last)) > 0 and not text[end - 1].isalnum():
        end += 1
    return end if end > 0 else last if len(text) >= last else 0
