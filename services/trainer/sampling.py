"""What samples begin with: the prompts of a spec as token ids, or the beginning of the validation part."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy.typing as npt

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.formats.tokenizer import Tokenizer
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason

# Where a sample begins when no prompt is given: enough of the validation text to give it a direction.
_PROMPT_TOKENS: Final = 32


class Prompter:
    """Turns prompts into token ids, and back. `default` is where a sample begins that has none."""

    def __init__(self, tokenizer: Tokenizer, default: list[int]) -> None:
        self._tokenizer = tokenizer
        self._default = default

    @property
    def end_id(self) -> int | None:
        """The id that ends a text, where the vocabulary has one."""
        return self._tokenizer.end_id

    def prompts(self, sample: pb.SampleSpec) -> list[list[int]]:
        """Ids of each prompt. FailedPrecondition, by field, for symbols that the vocabulary lacks."""
        texts = [sample.prompt] if sample.prompt else list(sample.prompts)
        found = [self._encoded(text, "prompt" if sample.prompt else f"prompts[{i}]") for i, text in enumerate(texts)]
        return found or [self._default]

    def known_prompts(self, sample: pb.SampleSpec) -> tuple[list[list[int]], list[str]]:
        """Ids of those prompts that the vocabulary can write, and what is wrong with the others."""
        known, wrong = [], []
        for text in [sample.prompt] if sample.prompt else list(sample.prompts):
            try:
                known.append(self._tokenizer.encode(text))
            except InvalidArgument as error:
                wrong.append(error.message)
        return known or [self._default], wrong

    def text(self, ids: list[int]) -> str:
        """The text of token ids."""
        return self._tokenizer.decode(ids)

    def _encoded(self, text: str, field: str) -> list[int]:
        try:
            return self._tokenizer.encode(text)
        except InvalidArgument as error:
            raise FailedPrecondition(
                Reason.REASON_UNKNOWN_SYMBOL, f"job.train.sample.{field}: {error.message}", violations=error.violations
            ) from error


def beginning(tokens: npt.NDArray[Any], count: int = 0) -> list[int]:
    """The first ids of the validation part: `count` of them, or enough to give a direction."""
    return [int(code) for code in tokens[: count or _PROMPT_TOKENS]]


def sampling_seed(seed: int, step: int) -> int:
    """The seed of the samples after a step: every prompt is gone on from with the same dice."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step}".encode()).digest()[:7])
