"""One sequence's place in a form: which tokens may come next, and whether the text is complete.

Knows tokens of one row; nothing of other rows, and nothing of how the form was said.
"""

import re
from collections.abc import Collection

import numpy as np
from llguidance import LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from octavo.errors import InvalidArgument, OctavoError
from octavo.v1.errors_pb2 import Reason

FIELD = "parameters.structured_output"
NOTHING_FITS = "nothing that the model's vocabulary can write has this form; use the symbols that it has"
Mask = NDArray[np.bool_]


class Constraint:
    """Excludes every token that would break the form; a bender of its row's logits.

    `matcher` stands where the text begins and is this constraint's own from now on; `allowed` bool [vocab + 1] is
    what may come first, its last entry whether the text may end; `closings` are the tokens that end the sequence,
    possible only where the text may end.
    """

    def __init__(self, matcher: LLMatcher, allowed: Mask, closings: Collection[int]) -> None:
        self.is_complete = False
        """Whether the text has the form, and nothing could follow."""
        self.failure: OctavoError | None = None
        """Why the sequence cannot go on, if it cannot."""
        self._matcher = matcher
        self._closings = np.array(sorted(closings), np.int64)
        self._length = 0
        self._take(allowed)

    def bend(self, logits: NDArray[np.float32]) -> None:
        """Excludes, in place, the tokens that may not come next."""
        if not self.failure:
            np.putmask(logits, self._forbidden, -np.inf)

    def note(self, token_id: int) -> None:
        """Follows the form by a token that was chosen. What fails is kept in `failure`: it concerns this row alone."""
        if self.failure or token_id in self._closings:
            return
        self._length += 1
        try:
            self._matcher.consume_token(token_id)
            allowed = next_tokens(self._matcher, len(self._forbidden))
        except BaseException as error:  # a panic of the library, which is Rust, is no Exception
            self.failure = _failed(self._length, str(error))
            return
        if complaint := complaint_of(self._matcher):
            self.failure = _failed(self._length, complaint)
        else:
            self._take(allowed)

    def _take(self, allowed: Mask) -> None:
        may_end = bool(allowed[-1])
        self._forbidden = ~allowed[:-1]
        self._forbidden[self._closings] = True
        is_stuck = bool(self._forbidden.all())
        self._forbidden[self._closings] = not may_end
        self.is_complete = may_end and is_stuck
        if is_stuck and not may_end:
            self.failure = _failed(self._length, NOTHING_FITS)


def next_tokens(matcher: LLMatcher, vocab_size: int) -> Mask:
    """The tokens that may come next, bool [vocab + 1]; the last entry says whether the text may end here."""
    words = allocate_token_bitmask(1, vocab_size + 1)
    if matcher.is_stopped():
        words[:] = 0
    else:
        fill_next_token_bitmask(matcher, words)
    allowed = np.unpackbits(words.view(np.uint8)[0], count=vocab_size + 1, bitorder="little").view(bool)
    if matcher.is_stopped():
        allowed[-1] = matcher.is_accepting()
    return allowed


def complaint_of(matcher: LLMatcher) -> str:
    """Why a matcher cannot go on, in the library's words, without its state and its grammar; empty if it can."""
    if not matcher.is_error():
        return ""
    words = re.split(r"<state>|<non-verbose/>|\n\s*1 \|", matcher.get_error())[0]
    complaint = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", " ".join(words.split())[:400])
    return NOTHING_FITS if complaint in ("", "NoExtensionBias") else complaint


def refused(field: str, complaint: str) -> InvalidArgument:
    """What becomes of a form that the library complains about: beyond a limit, or wrong."""
    reason = Reason.REASON_INVALID_FIELD
    if NOTHING_FITS in complaint:
        reason = Reason.REASON_UNKNOWN_SYMBOL
    elif any(word in complaint for word in ("fuel", "too many", "too large", "max is", "limit")):
        reason = Reason.REASON_LIMIT_EXCEEDED
    return InvalidArgument.field(field, complaint, reason=reason)


def _failed(length: int, complaint: str) -> OctavoError:
    return refused(FIELD, f"the text cannot go on after {length} tokens: {complaint}")
