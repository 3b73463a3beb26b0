"""The text that precisions are made with and measured by: windows to calibrate on, held-out tokens to predict.

Both are as long as the machine can run through in a minute or so, whatever the text; the same for every precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.formats.architecture import Architecture
from octavo.formats.tokenizer import Tokenizer
from octavo.v1.errors_pb2 import Reason

Tokens = npt.NDArray[np.integer[Any]]

MAX_PERPLEXITY_INCREASE: Final = 0.01
"""By which a precision may be worse than fp32, as a fraction of its perplexity, unless more is asked for."""

# Floating-point operations of one run over each part: 10 to 20 s on two cores at 10^11 a second.
_CALIBRATION_FLOPS: Final = 1e12
_HELD_OUT_FLOPS: Final = 2e12
_WINDOWS: Final = (8, 64)
_LONGEST_WINDOW: Final = 1024
_HELD_OUT_TOKENS: Final = (4096, 1 << 17)
# No byte-level BPE of 50,000 entries has more characters a token than this on text it fits.
_CHARACTERS_PER_TOKEN: Final = 8


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """`windows` of token ids, none longer than the context, and at least two `held_out` ids of `held_out_bytes`."""

    windows: tuple[npt.NDArray[np.int64], ...]
    held_out: npt.NDArray[np.int64]
    held_out_bytes: int

    @classmethod
    def of_tokens(cls, a: Architecture, tokenizer: Tokenizer, training: Tokens, validation: Tokens) -> Yardstick:
        """From a text that is tokenized already; FailedPrecondition where it is too short."""
        length = min(a.context_length, _LONGEST_WINDOW)
        starts = _starts(len(training), length, _window_count(a))
        windows = [training[start : start + length].astype(np.int64) for start in starts]
        return _checked(tokenizer, windows, validation[: held_out_tokens(a)].astype(np.int64))

    @classmethod
    def of_text(cls, a: Architecture, tokenizer: Tokenizer, text: str, validation_fraction: float) -> Yardstick:
        """From a text whose last part is held out, cut where training cuts it.

        FailedPrecondition where it does not fit the tokenizer, or is too short.
        """
        cut = int(len(text) * (1 - validation_fraction))
        length = min(a.context_length, _LONGEST_WINDOW)
        span = length * _CHARACTERS_PER_TOKEN
        try:
            windows = [
                np.array(tokenizer.encode(text[start : min(cut, start + span)])[:length], np.int64)
                for start in _starts(cut, span, _window_count(a))
            ]
            held_out = tokenizer.encode(text[cut : cut + held_out_tokens(a) * _CHARACTERS_PER_TOKEN])
        except InvalidArgument as error:
            raise FailedPrecondition(
                Reason.REASON_UNKNOWN_SYMBOL,
                f"the text does not fit the model's tokenizer: {error.message}; name a dataset that does",
            ) from error
        return _checked(tokenizer, windows, np.array(held_out[: held_out_tokens(a)], np.int64))


def held_out_tokens(a: Architecture) -> int:
    """How many tokens quality is measured over."""
    return int(np.clip(_HELD_OUT_FLOPS / a.flops_per_token(), *_HELD_OUT_TOKENS))


def calibration_tokens(a: Architecture) -> int:
    """How many tokens scales are calibrated on, at most."""
    return _window_count(a) * min(a.context_length, _LONGEST_WINDOW)


def _window_count(a: Architecture) -> int:
    length = min(a.context_length, _LONGEST_WINDOW)
    return int(np.clip(_CALIBRATION_FLOPS / (a.flops_per_token() * length), *_WINDOWS))


def _starts(total: int, length: int, count: int) -> Iterator[int]:
    starts = np.linspace(0, max(0, total - length), count).astype(np.int64)
    yield from dict.fromkeys(starts.tolist())


def _checked(tokenizer: Tokenizer, windows: list[npt.NDArray[np.int64]], held_out: npt.NDArray[np.int64]) -> Yardstick:
    kept = tuple(window for window in windows if len(window))
    if not kept or len(held_out) < 2:
        raise FailedPrecondition(
            Reason.REASON_CORPUS_UNUSABLE,
            "the text is too short to calibrate and to measure; a text of at least 1,000 characters is a beginning",
        )
    return Yardstick(windows=kept, held_out=held_out, held_out_bytes=len(tokenizer.decode(held_out.tolist()).encode()))
