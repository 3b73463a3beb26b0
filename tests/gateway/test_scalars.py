"""One scalar, from JSON or from a text."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scalars import Refused, json_converter, near, shown, text_converter


def field_of(message, name):
    return message("Everything").DESCRIPTOR.fields_by_name[name]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("pagesize", "pageSize"), ("page_size", "pageSize"), ("PAGESIZE", "pageSize"), ("pageSzie", "pageSize")],
)
def test_what_was_meant_is_found_whatever_the_spelling(typed, meant) -> None:
    assert near(typed, ["pageToken", "pageSize", "filter"])[0] == meant


def test_a_word_that_is_near_to_nothing_has_no_suggestion() -> None:
    assert near("zzz", ["pageSize"]) == []
    assert near("p" * 1000, ["p" * 999]) == []


def test_a_quoted_value_is_short() -> None:
    assert len(shown("x" * 10_000)) < 70


@given(st.integers())
def test_an_integer_is_taken_exactly_when_it_fits(value) -> None:
    from google.protobuf import wrappers_pb2

    convert = json_converter(wrappers_pb2.Int32Value.DESCRIPTOR.fields_by_name["value"])
    for given_as in (value, str(value)):
        if -(2**31) <= value < 2**31:
            assert convert(given_as) == value
        else:
            with pytest.raises(Refused):
                convert(given_as)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_taken_exactly_when_it_is_finite_in_32_bits(value) -> None:
    from google.protobuf import wrappers_pb2

    convert = json_converter(wrappers_pb2.FloatValue.DESCRIPTOR.fields_by_name["value"])
    try:
        struct.pack("<f", value)
    except OverflowError:
        with pytest.raises(Refused):
            convert(value)
    else:
        assert convert(value) == value


def test_texts_are_read_as_what_their_field_is(message) -> None:
    assert text_converter(field_of(message, "bool_value"))("false") is False
    assert text_converter(field_of(message, "enum_value"))("2") == 2
    assert text_converter(field_of(message, "string_value"))("2") == "2"
    assert text_converter(field_of(message, "int64_value"))("-2") == -2
    with pytest.raises(Refused):
        text_converter(field_of(message, "bool_value"))("1")
