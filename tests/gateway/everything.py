"""Hypothesis strategies for the test contract's message with one field of every kind."""

from typing import Any

from hypothesis import strategies as st

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
# json_format writes at least six digits; of a subnormal number fewer may tell all, and we write those.
FLOAT = st.floats(width=32, allow_subnormal=False)
DOUBLE = st.floats()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ENUM = st.sampled_from([0, 1, 2, 99])
NESTED: Any = st.recursive(
    st.fixed_dictionaries(
        {}, optional={"text": TEXT, "number": INT32, "entries": st.dictionaries(TEXT, TEXT, max_size=2)}
    ),
    lambda inner: st.fixed_dictionaries({"nested": inner}, optional={"number": INT32}),
    max_leaves=3,
)
TIMESTAMP = st.fixed_dictionaries(
    {"seconds": st.integers(-62135596800, 253402300799), "nanos": st.integers(0, 999_999_999)}
)

FIELDS: dict[str, Any] = {
    "double_value": DOUBLE,
    "float_value": FLOAT,
    "int32_value": INT32,
    "int64_value": INT64,
    "uint32_value": UINT32,
    "uint64_value": UINT64,
    "sint32_value": INT32,
    "sint64_value": INT64,
    "fixed32_value": UINT32,
    "fixed64_value": UINT64,
    "bool_value": st.booleans(),
    "string_value": TEXT,
    "bytes_value": st.binary(max_size=8),
    "enum_value": ENUM,
    "optional_value": INT32,
    "nested": NESTED,
    "repeated_string": st.lists(TEXT, max_size=3),
    "repeated_float": st.lists(FLOAT, max_size=3),
    "repeated_double": st.lists(DOUBLE, max_size=3),
    "repeated_int32": st.lists(INT32, max_size=3),
    "repeated_int64": st.lists(INT64, max_size=3),
    "repeated_uint32": st.lists(UINT32, max_size=3),
    "repeated_bool": st.lists(st.booleans(), max_size=3),
    "repeated_enum": st.lists(ENUM, max_size=3),
    "repeated_bytes": st.lists(st.binary(max_size=8), max_size=3),
    "repeated_message": st.lists(NESTED, max_size=2),
    "string_map": st.dictionaries(TEXT, TEXT, max_size=2),
    "message_map": st.dictionaries(INT32, NESTED, max_size=2),
    "bool_map": st.dictionaries(st.booleans(), INT64, max_size=2),
    "timestamp": TIMESTAMP,
    "repeated_timestamp": st.lists(TIMESTAMP, max_size=2),
    "duration": st.fixed_dictionaries({"seconds": st.integers(0, 10**9), "nanos": st.integers(0, 999_999_999)}),
    "wrapped_int64": st.fixed_dictionaries({"value": INT64}),
    "wrapped_bool": st.fixed_dictionaries({"value": st.booleans()}),
    "wrapped_string": st.fixed_dictionaries({"value": TEXT}),
}

everything = st.fixed_dictionaries({}, optional=FIELDS).flatmap(
    lambda fields: st.one_of(
        st.just(fields),
        TEXT.map(lambda text: {**fields, "chosen_text": text}),
        INT32.map(lambda number: {**fields, "chosen_number": number}),
        NESTED.map(lambda nested: {**fields, "chosen_message": nested}),
    )
)
