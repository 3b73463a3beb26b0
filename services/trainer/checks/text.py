"""What there is to learn from."""

from __future__ import annotations

from services.trainer.checks.finding import Case, Finding, obstacle, warning

_FEWEST_TOKENS = 10_000
_LONGEST_LINE_BYTES = 100_000


@obstacle("dataset", "There are tokens to learn from and tokens to measure on.")
def text_too_short(case: Case) -> Finding | None:
    train, validation = case.text.train_tokens, case.text.validation_tokens
    if train >= 2 and validation >= 2:
        return None
    why = f"its {train + validation} tokens cannot be split into a training and a validation part"
    return Finding(why, {}, "give a text of at least 1,000 characters")


@warning("dataset", "There is enough text to learn a language from.")
def little_text(case: Case) -> Finding | None:
    tokens = case.text.train_tokens
    if tokens >= _FEWEST_TOKENS:
        return None
    return Finding(f"{tokens:,} tokens teach a model to repeat them, not to write", {}, "give 100,000 or more")


@warning("dataset", "The text has lines.")
def one_long_line(case: Case) -> Finding | None:
    size, lines = case.text.size_bytes, case.text.lines
    if not lines or size <= _LONGEST_LINE_BYTES * lines:
        return None
    why = f"{size:,} bytes in {lines} lines: the model will hardly learn where a line ends"
    return Finding(why, {}, "see whether line breaks were lost on the way")


@warning("architecture.context_length", "A row fits into the context.")
def rows_cut(case: Case) -> Finding | None:
    row, context = case.text.row_tokens, case.shape.context_length
    if not case.has("architecture.context_length") or row <= context + 1:
        return None
    why = f"rows of up to {row:,} tokens do not fit {context}: prompts are cut from the left, or rows left out"
    return Finding(why, {"architecture.context_length": None})


@warning("data.packing", "Sequences are filled.")
def rows_unpacked(case: Case) -> Finding | None:
    row, context = case.text.row_tokens, case.shape.context_length
    if not row or case.spec.data.packing or context < 4 * row:
        return None
    why = f"each row of at most {row:,} tokens takes a sequence of {context:,}, most of it wasted"
    return Finding(why, {"data.packing": True})


PLANNED = (text_too_short, little_text, one_long_line, rows_cut, rows_unpacked)
