"""A template puts values in the place of names, and does nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InvalidArgument
from services.trainer.template import Template, text_of


def test_names_in_braces_become_values():
    template = Template("Q: {question} ({year})\nA: ")
    assert template.columns == ["question", "year"]
    assert template.fill({"question": "Who?", "year": "1999"}) == "Q: Who? (1999)\nA: "


def test_double_braces_are_braces():
    template = Template("{{{name}}} and {{}}")
    assert template.columns == ["name"]
    assert template.fill({"name": "x"}) == "{x} and {}"


@given(st.text())
def test_a_value_is_put_in_as_it_is(value):
    assert Template("<{a}>").fill({"a": value}) == (f"<{value}>" if value else "")


def test_a_paragraph_whose_columns_are_all_empty_is_left_out():
    template = Template("### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n")
    assert template.fill({"instruction": "Add.", "input": ""}) == "### Instruction:\nAdd.\n\n### Response:\n"
    assert template.fill({"instruction": "Add.", "input": "1 2"}).count("\n\n") == 2


def test_nothing_of_a_value_is_looked_up():
    """Neither attributes nor items nor formats: a name is the name of a column, whatever it looks like."""
    assert Template("{a.__class__}{b[0]}{c!r:>9}").columns == ["a.__class__", "b[0]", "c!r:>9"]


@pytest.mark.parametrize(("text", "complaint"), [("{", "single '{'"), ("a } b", "single '}'"), ("x" * 10_001, "10001")])
def test_a_template_that_cannot_be_meant_is_refused(text, complaint):
    with pytest.raises(InvalidArgument) as caught:
        Template(text)
    assert complaint in str(caught.value.violations)


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (None, ""), (3, "3"), (2.5, "2.5"), (True, "true"), (["ä"], '["ä"]'), ({"a": 1}, '{"a": 1}')],
)
def test_values_of_json_become_text(value, text):
    assert text_of(value) == text
