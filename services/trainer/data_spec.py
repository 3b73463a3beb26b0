"""From a data spec and the columns of a dataset to the same spec with every field set; faults by field.

Knows nothing of the rows themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import Message

from octavo.errors import InvalidArgument
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from octavo.v1.errors_pb2 import Reason
from services.trainer.template import Template

INSTRUCTION: Final = "instruction"
INPUT: Final = "input"
ANSWER: Final = "output"
TEXT: Final = "text"

_PLAIN: Final = "{input}\n"
_INSTRUCTION: Final = "### Instruction:\n{instruction}\n\n"
_INPUT: Final = "### Input:\n{input}\n\n"
_RESPONSE: Final = "### Response:\n"


def resolve_data(asked: pb.DataSpec, dataset: datasets_pb2.Dataset) -> pb.DataSpec | None:
    """How the rows of `dataset` become examples; None for plain text. InvalidArgument by field."""
    if dataset.format == datasets_pb2.DATASET_FORMAT_TEXT:
        if asked.ListFields():
            raise _invalid({"": f"is for rows; {dataset.name} is plain text, which is learnt as it is"})
        return None
    full = pb.DataSpec(loss_on=pb.LOSS_TARGET_ANSWER, packing=True, long_rows=pb.LONG_ROW_POLICY_TRUNCATE_PROMPT)
    full.MergeFrom(asked)
    columns = list(dataset.statistics.columns)
    wrong = _column_faults(asked, columns)
    if wrong:
        raise _invalid(wrong)
    if _is_text(full, columns):
        _fill_text(full)
    else:
        _fill_answers(full, columns)
    return full


def _is_text(full: pb.DataSpec, columns: Sequence[str]) -> bool:
    if full.HasField("text_column"):
        return True
    asks_for_answers = full.HasField("answer_column") or full.HasField("template")
    return not asks_for_answers and ANSWER not in columns and TEXT in columns


def _fill_text(full: pb.DataSpec) -> None:
    set_beside = [field for field in ("answer_column", "template") if _has(full, field)]
    if set_beside:
        raise _invalid(dict.fromkeys(set_beside, "has no meaning beside text_column; leave one of them out"))
    if not full.text_column:
        full.text_column = TEXT
    full.loss_on = pb.LOSS_TARGET_ALL


def _fill_answers(full: pb.DataSpec, columns: Sequence[str]) -> None:
    for role in (INSTRUCTION, INPUT):
        field = f"{role}_column"
        if not _has(full, field) and role in columns:
            setattr(full, field, role)
    if not full.HasField("answer_column"):
        full.answer_column = ANSWER
        if ANSWER not in columns:
            raise _invalid(
                {"answer_column": f"there is no column {ANSWER!r}; name the one to learn: {_listed(columns)}"}
            )
    if not full.HasField("template"):
        full.template = _default_template(full, columns)
    try:
        named = Template(full.template).columns
    except InvalidArgument as error:
        raise _invalid({"template": error.violations[""]}) from error
    known = {*columns, *(role for role in (INSTRUCTION, INPUT) if _has(full, f"{role}_column"))}
    unknown = [name for name in named if name not in known]
    if unknown:
        raise _invalid({"template": f"{{{unknown[0]}}} is no column; there are {_listed(columns)}"})


def _default_template(full: pb.DataSpec, columns: Sequence[str]) -> str:
    if full.HasField("instruction_column"):
        return _INSTRUCTION + (_INPUT if full.HasField("input_column") else "") + _RESPONSE
    if full.HasField("input_column"):
        return _PLAIN
    raise _invalid(
        {
            "template": f"there is neither a column {INPUT!r} nor {INSTRUCTION!r}; write what comes before the answer, "
            f"such as {{{next((name for name in columns if name != full.answer_column), 'column')}}}, "
            f"or name input_column: {_listed(columns)}"
        }
    )


def _column_faults(asked: pb.DataSpec, columns: Sequence[str]) -> dict[str, str]:
    wrong = {}
    for role in (INSTRUCTION, INPUT, "answer", TEXT):
        field = f"{role}_column"
        name = getattr(asked, field)
        if _has(asked, field) and name not in columns:
            wrong[field] = f"{name[:90]!r} is no column; there are {_listed(columns)}"
    return wrong


def _has(data: Message, field: str) -> bool:
    return data.HasField(field)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns[:20])) + (" …" if len(columns) > 20 else "")


def _invalid(wrong: dict[str, str]) -> InvalidArgument:
    fields = {f"job.train.data.{field}".rstrip("."): text for field, text in wrong.items()}
    return InvalidArgument.fields(fields, reason=Reason.REASON_INVALID_FIELD)
