"""Path variables and query parameters into messages."""

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.json_reader import JsonReader
from gateway.parameters import PathField, QueryError, QueryFields, parse_query
from gateway.violations import Violations


@pytest.fixture
def read(contract, message):
    """Reads a raw query into a message with one field of every kind: the message and what was wrong."""

    def run(raw: str, kind: str = "Everything", taken=()):
        target, violations = message(kind), Violations()
        fields = QueryFields(target.DESCRIPTOR, JsonReader(contract.pool), taken=taken)
        fields.put(target, parse_query(raw.encode()), violations)
        return target, {violation.field: violation.description for violation in violations.found}

    return run


@pytest.mark.parametrize(
    ("raw", "field", "expected"),
    [
        ("stringValue=%24%25%2F%20%0A", "string_value", "$%/ \n"),
        ("string_value=a+b", "string_value", "a b"),
        ("string_value=a=b", "string_value", "a=b"),
        ("string_value=", "string_value", ""),
        ("string_value", "string_value", ""),
        ("repeated_string=a&repeatedString=b", "repeated_string", ["a", "b"]),
        ("repeatedInt32=1&repeatedInt32=-2", "repeated_int32", [1, -2]),
        ("enumValue=GENRE_POETRY", "enum_value", 1),
        ("enum_value=2", "enum_value", 2),
        ("bytesValue=Ynl0ZXM%3D", "bytes_value", b"bytes"),
        ("bytesValue=Ynl0ZXM", "bytes_value", b"bytes"),
        ("uint64Value=18446744073709551615", "uint64_value", 2**64 - 1),
        ("boolValue=true", "bool_value", True),
        ("doubleValue=-Infinity", "double_value", float("-inf")),
        ("doubleValue=1.5e3", "double_value", 1500.0),
        ("mask=displayName,author.family_name", "mask.paths", ["display_name", "author.family_name"]),
        ("duration=1.5s", "duration.nanos", 500_000_000),
        ("timestamp=2026-05-17T09:30:00Z", "timestamp.seconds", 1779010200),
        ("wrappedInt64=-5", "wrapped_int64.value", -5),
        ("wrappedBool=true", "wrapped_bool.value", True),
        ("wrappedString=true", "wrapped_string.value", "true"),
        ("nested.nested.number=3", "nested.nested.number", 3),
        ("chosenMessage.text=x", "chosen_message.text", "x"),
        ("chosenMessage.text=x&chosenMessage.number=1", "chosen_message.number", 1),
        ("optionalValue=0", "optional_value", 0),
    ],
)
def test_a_parameter_sets_its_field(raw, field, expected, read) -> None:
    value, mistakes = read(raw)
    assert mistakes == {}
    for name in field.split("."):
        value = getattr(value, name)
    assert (list(value) if isinstance(expected, list) else value) == expected


def test_a_map_is_set_by_key(read) -> None:
    value, mistakes = read("nested.nested.entries[first]=foo&stringMap%5Bsecond%5D=b&boolMap[true]=7")
    assert mistakes == {}
    assert dict(value.nested.nested.entries) == {"first": "foo"}
    assert dict(value.string_map) == {"second": "b"}
    assert dict(value.bool_map) == {True: 7}


def test_struct_and_value_are_json_texts(read) -> None:
    value, mistakes = read('struct={"a":[1]}&value=3&list=[1,2]')
    assert mistakes == {}
    assert (value.struct["a"][0], value.value.number_value, len(value.list)) == (1, 3, 2)


@pytest.mark.parametrize(
    ("raw", "key", "words"),
    [
        ("uint64_value=1&uint64_value=2", "uint64_value", "too many values"),
        ("uint64_value=1&uint64Value=2", "uint64Value", "too many values"),
        ("chosenText=a&chosenNumber=1", "chosenNumber", "already set for oneof"),
        ("chosenText=a&chosenMessage.text=b", "chosenMessage.text", "already set for oneof"),
        ("repeatedMessage.text=x", "repeatedMessage.text", "use a body"),
        ("repeatedMessage=x", "repeatedMessage", "use a body"),
        ("nested=x", "nested", "one of its fields"),
        ("stringValue.x=1", "stringValue.x", "no fields"),
        ("timestamp=null", "timestamp", "2026-05-17"),
        ("int32Value=1.5x", "int32Value", "integer"),
        ("boolValue=yes", "boolValue", "true or false"),
        ("enumValue=POETRY", "enumValue", "GENRE_POETRY"),
        ("bytesValue=%C3%A4", "bytesValue", "base64"),
        ("struct={", "struct", "JSON"),
        ("stringMap=a", "stringMap", "stringMap[key]=value"),
        ("stringMap[a]=1&stringMap[a]=2", "stringMap[a]", "twice"),
        ("messageMap[1]=x", "messageMap[1]", "use a body"),
        ("stringValue[a]=1", "stringValue[a]", "no map"),
        ("stringvalue=1", "stringvalue", "did you mean 'stringValue'"),
        ("nested.txt=1", "nested.txt", "did you mean 'text'"),
        ("a..b=1", "a..b", "no field 'a'"),
        ("=1", "", "no field ''"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_what_would_be_right(raw, key, words, read) -> None:
    _, mistakes = read(raw)
    assert list(mistakes) == [key or "(body)"]
    assert words in mistakes[key or "(body)"]


def test_the_usual_typo_is_refused_with_the_right_name(read) -> None:
    _, mistakes = read("pagesize=3", "ListBooksRequest")
    assert "did you mean 'pageSize'" in mistakes["pagesize"]


def test_system_parameters_change_nothing(read) -> None:
    value, mistakes = read("prettyPrint=true&key=x&alt=json&$alt=json&callback=f&fields=a&access_token=t&api_key=k")
    assert (mistakes, value.ByteSize()) == ({}, 0)


def test_what_the_path_or_the_body_holds_cannot_be_a_parameter(read) -> None:
    _, mistakes = read("nested.text=x&stringValue=y", taken=("nested", "string_value"))
    assert set(mistakes) == {"nested.text", "stringValue"}


@given(st.lists(st.tuples(st.text(min_size=1), st.text()), max_size=5))
def test_any_query_that_a_client_encodes_is_parsed_as_it_was_meant(pairs) -> None:
    assert parse_query(urlencode(pairs).encode()) == pairs


@pytest.mark.parametrize("raw", [b"a=%ff", b"%ff=a", b"&".join([b"a=1"] * 1001)])
def test_a_query_that_is_no_query_is_refused(raw) -> None:
    with pytest.raises(QueryError):
        parse_query(raw)


@pytest.mark.parametrize(
    "path", ["nope", "nested", "repeated_string", "nested.nope", "string_value.x", "repeated_message.text"]
)
def test_a_path_variable_must_lead_to_one_scalar(path, message) -> None:
    with pytest.raises(ValueError, match=path):
        PathField(message("Everything").DESCRIPTOR, path)


def test_a_path_variable_sets_a_field_inside_a_message(message) -> None:
    target, violations = message("Everything"), Violations()
    PathField(target.DESCRIPTOR, "nested.nested.number").put(target, "7", violations)
    PathField(target.DESCRIPTOR, "enum_value").put(target, "GENRE_POETRY", violations)
    assert (violations.found, target.nested.nested.number, target.enum_value) == ([], 7, 1)


def test_a_body_that_contradicts_the_path_is_refused(message) -> None:
    target, violations = message("Book", name="shelves/1/books/a"), Violations()
    PathField(target.DESCRIPTOR, "name").put(target, "shelves/1/books/b", violations)
    assert "the body says 'shelves/1/books/a'" in violations.found[0].description
