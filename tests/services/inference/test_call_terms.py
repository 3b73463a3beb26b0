import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InvalidArgument, Unimplemented
from octavo.open_inference.open_inference_pb2 import InferParameter, ModelInferRequest
from services.inference import call_terms
from services.inference.call_terms import CallTerms


def asked(**parameters):
    request = ModelInferRequest()
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


@pytest.mark.parametrize(("level", "priority"), [(0, 0), (1, 100), (2, 99), (101, 0), (201, -100)])
def test_priorities_count_down_from_the_most_urgent_and_0_is_usual(level, priority):
    assert call_terms.read(asked(priority=level)).priority == priority


def test_a_timeout_is_in_microseconds_and_0_is_none():
    assert call_terms.read(asked(timeout=1500)).timeout_s == 0.0015
    assert call_terms.read(asked(timeout="1500")).timeout_s == 0.0015
    assert call_terms.read(asked(timeout=0)).timeout_s is None


def test_what_is_reserved_is_kept_from_the_model():
    request = asked(temperature=0.5, triton_enable_empty_final_response=True, timeout=5, headers="x", sequence_id=0)
    assert call_terms.own_parameters(request) == {"temperature": 0.5}
    assert call_terms.read(request).wants_final


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"priority": -1}, "-1 is not between 0"),
        ({"priority": 1.5}, "1.5 is not a value"),
        ({"timeout": "soon"}, "'soon' is not a value"),
        ({"timeout": 2**62}, "is not between 0"),
        ({"triton_enable_empty_final_response": "perhaps"}, "'perhaps' is not a value"),
    ],
)
def test_values_that_are_none_are_refused(parameters, says):
    with pytest.raises(InvalidArgument, match=says):
        call_terms.read(asked(**parameters))


@pytest.mark.parametrize("parameters", [{"sequence_id": 5}, {"sequence_id": "a"}, {"sequence_start": True}])
def test_sequences_are_refused(parameters):
    with pytest.raises(Unimplemented, match="no sequences"):
        call_terms.read(asked(**parameters))


PARAMETERS = st.builds(
    lambda kind, value: InferParameter(**{kind: value}),
    st.sampled_from(["int64_param"]),
    st.integers(-(2**63), 2**63 - 1),
) | st.builds(lambda value: InferParameter(double_param=value), st.floats())


@given(st.sampled_from(["priority", "timeout"]), PARAMETERS)
def test_whatever_number_comes_is_read_or_refused(name, parameter):
    request = ModelInferRequest(parameters={name: parameter})
    try:
        terms = call_terms.read(request)
    except InvalidArgument:
        return
    assert isinstance(terms, CallTerms)
    assert -100 <= terms.priority <= 100
