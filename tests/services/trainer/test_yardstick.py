"""Text to calibrate on and to measure by: enough, never the held-out part, and refused where it does not fit."""

import numpy as np
import pytest

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.formats.tokenizer import Tokenizer
from services.trainer.yardstick import Yardstick, calibration_tokens, held_out_tokens

TEXT = "".join(f"line {number} of a text that goes on and on.\n" for number in range(3000))


def architecture(**changes):
    sizes = {"vocab_size": 64, "context_length": 128, "width": 64, "layers": 2, "heads": 4, "head_size": 16}
    return Architecture.derive("llama", **(sizes | changes))


def test_windows_come_from_before_the_cut_and_held_out_tokens_from_behind_it():
    cut = int(len(TEXT) * 0.9)
    known, late = TEXT[:cut].replace("9", "8"), TEXT[cut:].replace("8", "9")
    tokenizer = Tokenizer.train_characters(known + late)
    found = Yardstick.of_text(architecture(), tokenizer, known + late, 0.1)
    assert {tokenizer.decode(window.tolist()) in known for window in found.windows} == {True}
    assert tokenizer.decode(found.held_out.tolist()) == late[: len(found.held_out)]
    assert found.held_out_bytes == len(found.held_out)
    assert max(map(len, found.windows)) == 128
    assert 8 <= len(found.windows) <= 64


def test_tokens_and_their_text_give_the_same_held_out_part():
    tokenizer = Tokenizer.train_bpe([TEXT], vocab_size=300)
    cut = int(len(TEXT) * 0.9)
    parts = [tokenizer.encode_corpus(part) for part in (TEXT[:cut], TEXT[cut:])]
    by_tokens = Yardstick.of_tokens(architecture(vocab_size=300), tokenizer, *parts)
    by_text = Yardstick.of_text(architecture(vocab_size=300), tokenizer, TEXT, 0.1)
    assert np.array_equal(by_tokens.held_out, by_text.held_out)
    assert by_tokens.held_out_bytes == by_text.held_out_bytes == len(TEXT[cut:].encode())


def test_a_symbol_that_the_model_does_not_know_is_told_with_what_to_do():
    tokenizer = Tokenizer.train_characters(TEXT)
    with pytest.raises(FailedPrecondition, match="does not fit the model's tokenizer") as refusal:
        Yardstick.of_text(architecture(), tokenizer, TEXT + "ü" * 9, 0.1)
    assert refusal.value.reason_name == "UNKNOWN_SYMBOL"


@pytest.mark.parametrize("text", ["ab", "x", ""])
def test_a_text_that_is_too_short_is_refused(text):
    with pytest.raises(FailedPrecondition, match="too short"):
        Yardstick.of_text(architecture(), Tokenizer.train_characters("abx"), text, 0.1)


def test_large_models_are_measured_on_fewer_tokens_and_never_on_too_few():
    large = architecture(vocab_size=50257, context_length=1024, width=768, layers=12, heads=12, head_size=64)
    assert held_out_tokens(architecture()) == 1 << 17
    assert 4096 <= held_out_tokens(large) < 1 << 14
    assert calibration_tokens(large) == 8 * 1024
