"""JSON to messages: as protobuf's own json_format reads it, with every mistake named."""

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings

from gateway.json_reader import JsonReader
from gateway.violations import Violations
from tests.gateway.everything import everything

SHARED = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)


@pytest.fixture(scope="session")
def reader(contract) -> JsonReader:
    return JsonReader(contract.pool)


@pytest.fixture
def mistakes(reader, message):
    """What reading a value into a kind of message complains of."""

    def find(value, kind="Everything") -> dict[str, str]:
        violations = Violations()
        reader.read(value, message(kind), violations)
        return {violation.field: violation.description for violation in violations.found}

    return find


@pytest.mark.parametrize("wrap", [lambda inner: {"a": inner}, lambda inner: [inner], lambda inner: {"a": [inner]}])
def test_json_is_as_deep_as_a_receiver_can_read_or_it_is_refused(reader, message, wrap) -> None:
    value, accepted = 1, 0
    for _ in range(60):
        value = wrap(value)
        built, violations = message("Everything"), Violations()
        reader.read({"struct": {"a": value}}, built, violations)
        if not violations.found:
            accepted += 1
            assert message("Everything").FromString(built.SerializeToString()) == built
    assert 10 < accepted < 60


@SHARED
@given(fields=everything)
def test_what_json_format_writes_is_read_as_the_same_message(fields, reader, message) -> None:
    original = message("Everything", **fields)
    for proto_names in (False, True):
        tree = json_format.MessageToDict(original, preserving_proto_field_name=proto_names)
        again, violations = message("Everything"), Violations()
        reader.read(tree, again, violations)
        assert violations.found == []
        assert str(again) == str(original)  # as text, since JSON has one NaN and binary has many


@pytest.mark.parametrize(
    "tree",
    [
        {"int32Value": "7", "int64Value": 7, "uint64Value": "18446744073709551615"},
        {"int32Value": 7.0},
        {"enumValue": 1, "repeatedEnum": ["GENRE_FICTION", 1]},
        {"bytesValue": "_-8", "repeatedBytes": ["/+8=", "AA"]},
        {"doubleValue": "NaN", "floatValue": "-Infinity", "repeatedDouble": [1, "2.5", "Infinity"]},
        {"nested": None, "stringValue": None, "repeatedString": None, "value": None, "stringMap": None},
        {"timestamp": "2026-05-17T09:30:00.123Z", "duration": "1.5s", "wrappedInt64": "5", "wrappedBool": True},
        {"struct": {"a": [1, None]}, "list": [1, "x"], "value": {"k": 1}, "nullValue": None},
        {"any": {"@type": "type.googleapis.com/shop.v1.Nested", "text": "x"}},
        {"boolMap": {"true": "1", "false": 2}, "messageMap": {"-3": {"text": "x"}}},
        {"mask": "displayName,author.familyName"},
    ],
)
def test_the_liberties_of_protojson_are_taken(tree, reader, message, contract) -> None:
    ours, oracle, violations = message("Everything"), message("Everything"), Violations()
    reader.read(tree, ours, violations)
    json_format.ParseDict(tree, oracle, descriptor_pool=contract.pool)
    assert violations.found == []
    assert ours == oracle or str(ours) == str(oracle)  # NaN is not equal to itself


def test_a_field_mask_may_be_in_proto_names(reader, message) -> None:
    value, violations = message("Everything"), Violations()
    reader.read({"mask": "display_name,author.familyName"}, value, violations)
    assert (violations.found, value.mask.paths) == ([], ["display_name", "author.family_name"])


@pytest.mark.parametrize(
    ("tree", "path", "words"),
    [
        ({"int32Value": 2**31}, "int32_value", "2147483647"),
        ({"int32Value": 1.5}, "int32_value", "integer"),
        ({"int32Value": True}, "int32_value", "integer"),
        ({"int32Value": "+1"}, "int32_value", "integer"),
        ({"uint32Value": -1}, "uint32_value", "0 to"),
        ({"boolValue": 1}, "bool_value", "true or false"),
        ({"boolValue": "true"}, "bool_value", "true or false"),
        ({"stringValue": 1}, "string_value", "string"),
        ({"bytesValue": "ä"}, "bytes_value", "base64"),
        ({"floatValue": 1e39}, "float_value", "float"),
        ({"repeatedFloat": [1, 1e39]}, "repeated_float[1]", "float"),
        ({"doubleValue": "1e999"}, "double_value", "Infinity"),
        ({"doubleValue": "ten"}, "double_value", "number"),
        ({"enumValue": "GENRE_POETRI"}, "enum_value", "GENRE_POETRY"),
        ({"enumValue": 2**40}, "enum_value", "range"),
        ({"repeatedInt32": [1, 2, "x"]}, "repeated_int32[2]", "integer"),
        ({"repeatedInt32": [1, 2**40]}, "repeated_int32[1]", "range"),
        ({"repeatedInt32": 3}, "repeated_int32", "list"),
        ({"repeatedString": [None]}, "repeated_string[0]", "string"),
        ({"nested": {"nested": {"number": "x"}}}, "nested.nested.number", "integer"),
        ({"nested": 3}, "nested", "object"),
        ({"repeatedMessage": [{}, {"txet": "x"}]}, "repeated_message[1].txet", "did you mean 'text'"),
        ({"stringMap": {"a": 1}}, "string_map[a]", "string"),
        ({"stringMap": []}, "string_map", "object"),
        ({"messageMap": {"x": {}}}, "message_map[x]", "integer"),
        ({"messageMap": {"1": {"numbr": 1}}}, "message_map[1].numbr", "did you mean 'number'"),
        ({"boolMap": {"yes": 1}}, "bool_map[yes]", "'true'"),
        ({"timestamp": "yesterday"}, "timestamp", "2026-05-17T09:30:00Z"),
        ({"duration": 3}, "duration", "3.5s"),
        ({"mask": "a b"}, "mask", "names with commas"),
        ({"any": {"@type": "type.googleapis.com/who.Knows"}}, "any", "who.Knows"),
        ({"stringvalue": "x"}, "stringvalue", "did you mean 'stringValue'"),
        ({"zzz": 1}, "zzz", "it has doubleValue"),
        ({"chosenText": "a", "chosenNumber": 1}, "chosen_number", "set twice"),
        ({"stringValue": "a", "string_value": "b"}, "string_value", "set twice"),
        (["not", "an", "object"], "(body)", "object"),
    ],
)
def test_a_mistake_is_named_with_its_field_and_what_would_be_right(tree, path, words, mistakes) -> None:
    found = mistakes(tree)
    assert list(found) == [path]
    assert words in found[path]


def test_all_mistakes_are_named_at_once_up_to_sixteen(mistakes) -> None:
    assert set(mistakes({"int32Value": "x", "boolValue": 3, "nope": 1})) == {"int32_value", "bool_value", "nope"}
    assert len(mistakes({f"nope{i}": 1 for i in range(1000)})) == 16
    assert len(mistakes({"repeatedInt32": ["x"] * 1000})) == 16


def test_a_null_member_leaves_its_oneof_alone(mistakes) -> None:
    assert mistakes({"chosenText": None, "chosenNumber": 1}) == {}


def test_nesting_has_a_limit(mistakes) -> None:
    tree: dict = {}
    for _ in range(300):
        tree = {"nested": tree}
    assert "inside one another" in next(iter(mistakes(tree).values()))


def test_a_huge_key_is_answered_shortly(mistakes) -> None:
    found = mistakes({"k" * 1_000_000: 1})
    assert len(next(iter(found))) <= 80
    assert len(next(iter(found.values()))) < 500
