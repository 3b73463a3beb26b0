import numpy as np
import pytest

from octavo.errors import InvalidArgument
from octavo.formats.tokenizer import Tokenizer
from octavo.v1.inference_pb2 import StructuredOutput
from services.inference.forms import Forms

TOKENIZER = Tokenizer.train_characters("ABC", has_end=True)
END = TOKENIZER.end_id
FORMS = Forms(TOKENIZER, TOKENIZER.vocab_size, {END})


def constrained(regex, closings=(END,), **form):
    return FORMS.compile(StructuredOutput(**form or {"regex": regex})).constraint(closings)


def possible(constraint):
    logits = np.zeros(TOKENIZER.vocab_size, np.float32)
    constraint.bend(logits)
    return set(np.flatnonzero(logits == 0).tolist())


def test_the_end_is_possible_only_where_the_form_may_end():
    constraint = constrained("AB?")
    assert possible(constraint) == {0}
    constraint.note(0)
    assert possible(constraint) == {1, END}
    assert not constraint.is_complete
    constraint.note(1)
    assert constraint.is_complete


def test_a_stop_token_is_possible_only_where_the_form_may_end():
    constraint = constrained("A[BC]*", closings=(END, 2))
    assert possible(constraint) == {0}
    constraint.note(0)
    assert possible(constraint) == {1, 2, END}
    constraint.note(2)
    assert constraint.failure is None


def test_an_end_token_that_is_ignored_is_never_possible():
    constraint = constrained("A+", closings=())
    constraint.note(0)
    assert possible(constraint) == {0}


def test_constraints_of_one_form_go_their_own_ways():
    form = FORMS.compile(StructuredOutput(regex="AB|BC"))
    one, other = form.constraint([END]), form.constraint([END])
    one.note(0)
    other.note(1)
    assert (possible(one), possible(other)) == ({1}, {2})


def test_a_way_that_leads_nowhere_is_told_as_soon_as_it_does():
    constraint = constrained("", grammar='root ::= "A" ("B" | "C" "x")')
    constraint.note(0)
    assert constraint.failure is None
    constraint.note(2)
    assert isinstance(constraint.failure, InvalidArgument)
    assert "after 2 tokens" in constraint.failure.violations["parameters.structured_output"]
    assert possible(constraint) == set(range(4)), "a row that is over bends nothing"


@pytest.mark.parametrize("token_id", [1, END + 1, -1])
def test_a_token_against_the_form_fails_its_own_row(token_id):
    constraint = constrained("A+")
    constraint.note(token_id)
    assert isinstance(constraint.failure, InvalidArgument)


def test_a_panic_of_the_library_fails_its_own_row(monkeypatch):
    class PanicException(BaseException):
        pass

    def panicking(matcher, vocab_size):
        raise PanicException("out of luck")

    constraint = constrained("A+")
    monkeypatch.setattr("services.inference.constraint.next_tokens", panicking)
    constraint.note(0)
    assert "out of luck" in constraint.failure.message
