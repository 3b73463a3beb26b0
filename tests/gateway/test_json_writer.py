"""Messages to JSON: the same as protobuf's own json_format, and a good deal faster."""

import base64
import json
import timeit

import orjson
import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import HealthCheck, given, settings

from gateway.json_writer import JsonWriter
from tests.gateway.everything import everything

SHARED = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)


@pytest.fixture(scope="session")
def writer(contract) -> JsonWriter:
    return JsonWriter(contract.pool)


def written(writer: JsonWriter, message) -> dict:
    return orjson.loads(writer.dumps(writer.tree(message)))


@SHARED
@given(fields=everything)
def test_any_message_is_written_as_json_format_writes_it(fields, writer, message) -> None:
    original = message("Everything", **fields)
    oracle = json_format.MessageToDict(original, always_print_fields_with_no_presence=True)
    # Nested messages print their defaults, too; both go through JSON text, which is what a client sees.
    assert written(writer, original) == json.loads(json.dumps(oracle))


@SHARED
@given(fields=everything)
def test_what_is_written_is_read_back_as_the_same_message(fields, writer, message) -> None:
    original = message("Everything", **fields)
    again = json_format.Parse(writer.dumps(writer.tree(original)), message("Everything"))
    assert str(again) == str(original)  # as text, since JSON has one NaN and binary has many


def test_fields_without_presence_are_printed_and_unset_ones_with_presence_are_not(writer, message) -> None:
    tree = written(writer, message("Nested"))
    assert tree == {"text": "", "number": 0, "entries": {}}
    assert "optionalValue" not in written(writer, message("Everything"))
    assert written(writer, message("Everything", optional_value=0))["optionalValue"] == 0


def test_a_float32_prints_as_the_shortest_decimal_that_reads_back(writer, message) -> None:
    text = writer.dumps(writer.tree(message("Everything", float_value=0.1, repeated_float=[0.1, 2**24])))
    assert b'"floatValue":0.1,' in text
    assert b'"repeatedFloat":[0.1,16777216.0]' in text


def test_numbers_that_are_not_finite_are_strings(writer, message) -> None:
    nan, inf = float("nan"), float("inf")
    tree = written(
        writer, message("Everything", double_value=nan, repeated_float=[1, -inf], repeated_double=[nan, inf])
    )
    assert (tree["doubleValue"], tree["repeatedFloat"], tree["repeatedDouble"]) == (
        "NaN",
        [1, "-Infinity"],
        ["NaN", "Infinity"],
    )


def test_struct_value_list_and_any_keep_their_shape(writer, message) -> None:
    value = message("Everything")
    json_format.ParseDict({"a": [1, None, {"b": True}]}, value.struct)
    json_format.ParseDict([1, "x"], value.list)
    value.value.null_value = struct_pb2.NULL_VALUE
    value.any.Pack(message("Nested", text="inside"))
    tree = written(writer, value)
    assert tree["struct"] == {"a": [1, None, {"b": True}]}
    assert tree["list"] == [1, "x"]
    assert tree["value"] is None
    assert tree["any"] == {"@type": "type.googleapis.com/shop.v1.Nested", "text": "inside"}


def test_an_any_of_an_unknown_type_keeps_its_bytes(writer, message) -> None:
    value = message("Everything")
    value.any.SetInParent()
    assert written(writer, value)["any"] == {}
    value.any.type_url, value.any.value = "type.googleapis.com/who.Knows", b"\x01\x02"
    assert written(writer, value)["any"] == {
        "@type": "type.googleapis.com/who.Knows",
        "value": base64.b64encode(b"\x01\x02").decode(),
    }


def test_large_arrays_of_numbers_are_written_much_faster_than_json_format_writes_them(writer, message) -> None:
    value = message("Everything", repeated_float=[i / 7 for i in range(10_000)])
    ours = min(timeit.repeat(lambda: writer.dumps(writer.tree(value)), number=1, repeat=5))
    theirs = min(timeit.repeat(lambda: orjson.dumps(json_format.MessageToDict(value)), number=1, repeat=3))
    assert ours * 5 < theirs
