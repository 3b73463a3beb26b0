"""What a data spec leaves open follows from the columns; what it names must be there."""

import pytest

from octavo.errors import InvalidArgument
from octavo.v1 import datasets_pb2
from octavo.v1 import trainer_pb2 as pb
from services.trainer.data_spec import resolve_data


def resolved(*columns, **asked):
    dataset = datasets_pb2.Dataset(name="datasets/rows", format=datasets_pb2.DATASET_FORMAT_CSV)
    dataset.statistics.columns.extend(columns)
    return resolve_data(pb.DataSpec(**asked), dataset)


def test_input_and_output_are_told_by_their_names():
    data = resolved("input", "output")
    assert data.template == "{input}\n"
    assert (data.input_column, data.answer_column) == ("input", "output")
    assert (data.loss_on, data.packing) == (pb.LOSS_TARGET_ANSWER, True)
    assert data.long_rows == pb.LONG_ROW_POLICY_TRUNCATE_PROMPT


def test_instructions_get_sections():
    assert resolved("instruction", "input", "output").template == (
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    )
    assert "Input" not in resolved("instruction", "output").template


def test_rows_of_text_are_learnt_whole():
    data = resolved("id", "text")
    assert data.text_column == "text"
    assert data.loss_on == pb.LOSS_TARGET_ALL
    assert resolved("body", text_column="body").text_column == "body"


def test_columns_may_have_other_names():
    data = resolved("question", "reply", input_column="question", answer_column="reply")
    assert data.template == "{input}\n"
    free = resolved("question", "hint", "reply", answer_column="reply", template="{question}? {hint}\n")
    assert not free.HasField("input_column")


def test_what_was_set_stays():
    data = resolved("input", "output", packing=False, loss_on=pb.LOSS_TARGET_ALL, long_rows=pb.LONG_ROW_POLICY_DROP)
    assert not data.packing
    assert data.loss_on == pb.LOSS_TARGET_ALL
    assert data.long_rows == pb.LONG_ROW_POLICY_DROP


@pytest.mark.parametrize(
    ("columns", "asked", "field", "complaint"),
    [
        (("a", "b"), {}, "answer_column", "no column 'output'; name the one to learn: 'a', 'b'"),
        (("a", "output"), {}, "template", "such as {a}"),
        (("input", "output"), {"answer_column": "reply"}, "answer_column", "'reply' is no column; there are 'input'"),
        (("input", "output"), {"template": "{inptu}\n"}, "template", "{inptu} is no column"),
        (("input", "output"), {"template": "{"}, "template", "single '{'"),
        (("text", "output"), {"text_column": "text", "template": "{text}"}, "template", "no meaning beside"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_field(columns, asked, field, complaint):
    with pytest.raises(InvalidArgument) as caught:
        resolved(*columns, **asked)
    assert complaint in caught.value.violations[f"job.train.data.{field}"]


def test_plain_text_has_no_rows_to_tell_about():
    text = datasets_pb2.Dataset(name="datasets/tiny", format=datasets_pb2.DATASET_FORMAT_TEXT)
    assert resolve_data(pb.DataSpec(), text) is None
    with pytest.raises(InvalidArgument) as caught:
        resolve_data(pb.DataSpec(packing=False), text)
    assert "plain text" in caught.value.violations["job.train.data"]
