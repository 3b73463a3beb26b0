"""The text of a sequence as it grows: whole characters only, ended by the first stop text wherever tokens meet.

Knows a decoder of tokens; nothing of engines or streams.
"""

from collections.abc import Sequence

from octavo.formats.tokenizer import StreamDecoder


class Transcript:
    """Tokens come in one by one; text goes out when it can no longer change. `stops` are texts, none empty."""

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stops = tuple(stops)
        self._overlap = max(map(len, self._stops), default=1) - 1
        self._unread: list[int] = []
        self._held = ""
        self.stop = ""
        """The stop text that has ended the text; empty while none has."""

    def append(self, token_id: int, *, may_stop: bool = True) -> bool:
        """Adds a token; True when it completes a stop text, which is then the end.

        A stop text that is complete while it may not stop is text like any other.
        """
        self._unread.append(token_id)
        if not self._stops:
            return False
        length_before = self._read()
        return may_stop and self._ends(length_before)

    def take(self) -> str:
        """The text that has become certain since the last call: a suffix that a stop may begin with waits."""
        self._read()
        certain = len(self._held) - self._unsure()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def take_last(self) -> str:
        """All that is left; what is still no whole character becomes the replacement character."""
        self._read()
        text, self._held = self._held, ""
        return text if self.stop else text + self._decoder.finish()

    def _read(self) -> int:
        """Turns tokens into text, not before somebody needs it; the length before."""
        length_before = len(self._held)
        if self._unread:
            self._held += "".join(map(self._decoder.push, self._unread))
            self._unread.clear()
        return length_before

    def _ends(self, length_before: int) -> bool:
        """Cuts the text at the earliest stop that reaches beyond `length_before`; among equals, the first given."""
        starts = [(max(0, length_before - len(stop) + 1), stop) for stop in self._stops]
        found = [(at, stop) for start, stop in starts if (at := self._held.find(stop, start)) >= 0]
        if not found:
            return False
        at, self.stop = min(found, key=lambda pair: pair[0])
        self._held = self._held[:at]
        return True

    def _unsure(self) -> int:
        """Length of the longest suffix that some stop text begins with."""
        for length in range(min(self._overlap, len(self._held)), 0, -1):
            suffix = self._held[-length:]
            if any(stop.startswith(suffix) for stop in self._stops):
                return length
        return 0
