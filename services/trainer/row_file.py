"""Rows on disk as prompts and answers, one after another: which are left out and why, which validate, which train.

A row validates by its own digest, wherever it stands: rows that are added or put in another order move no other, and
equal ones are on the same side. Never holds more than a row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import nextafter
from pathlib import Path
from typing import Any, NamedTuple

from octavo.formats import dataset_rows
from octavo.formats.dataset_rows import HeaderError, Position
from octavo.formats.tokenizer import END_OF_TEXT
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.datasets_pb2 import DatasetFormat
from services.trainer.data_spec import INPUT, INSTRUCTION
from services.trainer.template import Template, text_of
from services.trainer.text_file import unusable


class Exchange(NamedTuple):
    """What a row asks and what it answers; `is_validation` says which part it is in."""

    prompt: str
    answer: str
    is_validation: bool


@dataclass
class RowFile:
    """The rows that can be learnt from, counted, and why others cannot. FailedPrecondition where there are too few."""

    path: Path
    form: DatasetFormat.ValueType
    data: pb.DataSpec
    validation_fraction: float
    characters: int = 0
    symbols: set[str] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._template = Template(self.data.template)
        self._roles = {INSTRUCTION: self.data.instruction_column, INPUT: self.data.input_column}
        self._limit = self.validation_fraction
        lowest, highest = 2.0, -1.0
        for prompt, answer, share in self._shared(self.dropped):
            self.characters += len(prompt) + len(answer)
            self.symbols.update(prompt, answer)
            lowest, highest = min(lowest, share), max(highest, share)
        if lowest >= highest:
            rows = "no row" if lowest > 1 else "only one row, or several that are equal,"
            reasons = "; ".join(f"{count:,} left out: {why}" for why, count in self.dropped.most_common())
            raise unusable(f"{rows} can be learnt from, and one must be held back for validation. {reasons}".strip())
        # Few rows may all be on one side: then the one nearest to the other goes there.
        self._limit = min(max(self._limit, nextafter(lowest, 2.0)), highest)

    def exchanges(self) -> Iterator[Exchange]:
        """Those that can be learnt from, in the order of the file."""
        for prompt, answer, share in self._shared(Counter()):
            yield Exchange(prompt, answer, share < self._limit)

    def _shared(self, dropped: Counter[str]) -> Iterator[tuple[str, str, float]]:
        """Prompt, answer and the digest of the row as a number from 0 to 1; counts what is left out."""
        with self.path.open("rb") as file:
            try:
                for row in dataset_rows.rows(file, self.form, Position()):
                    if row.content is None:
                        dropped.update(["the row is damaged"] if row.wrong else [])
                        continue
                    prompt, answer, fault = self._exchange(row.content)
                    if fault:
                        dropped[fault] += 1
                    else:
                        yield prompt, answer, _share(row.content)
            except HeaderError as error:
                raise unusable(f"{error}; the first line names the columns") from error

    def _exchange(self, content: Mapping[str, Any]) -> tuple[str, str, str]:
        """Prompt and answer, and what is wrong with them, if anything."""
        is_text = bool(self.data.text_column)
        column = self.data.text_column or self.data.answer_column
        answer, prompt = text_of(content.get(column)), ""
        if column not in content:
            return "", "", f"there is no column {column!r}"
        if not answer.strip():
            return "", "", "the text is empty" if is_text else "the answer is empty"
        if not is_text:
            values = {name: text_of(content.get(self._roles.get(name) or name)) for name in self._template.columns}
            if values and not any(value.strip() for value in values.values()):
                return "", "", "the prompt is empty"
            prompt = self._template.fill(values)
        if END_OF_TEXT in prompt or END_OF_TEXT in answer:
            return "", "", f"{END_OF_TEXT}, which ends an answer, is in the text"
        return prompt, answer, ""


def _share(content: Mapping[str, Any]) -> float:
    canonical = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:6]) / (1 << 48)
