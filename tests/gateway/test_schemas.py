"""JSON Schemas of messages: what JSON protobuf would write, they allow; what it would refuse, they do not."""

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from openapi_schema_validator import OAS31Validator

from gateway.json_writer import JsonWriter
from gateway.schemas import Schemas
from tests.gateway.everything import everything


@pytest.fixture(scope="module")
def validator(contract) -> OAS31Validator:
    schemas = Schemas(contract)
    root = schemas.message(contract.pool.FindMessageTypeByName("shop.v1.Everything"))
    return OAS31Validator({**root, "components": {"schemas": schemas.components}})


@settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
@given(fields=everything)
def test_whatever_is_written_fits_its_schema(fields, validator, message, contract) -> None:
    fields = {**fields, "enum_value": 1, "repeated_enum": []}  # numbers that no name is known for stay numbers
    writer = JsonWriter(contract.pool)
    validator.validate(orjson.loads(writer.dumps(writer.tree(message("Everything", **fields)))))


@pytest.mark.parametrize(
    "value",
    [{"int32Value": "x"}, {"boolValue": 1}, {"enumValue": "NOPE"}, {"repeatedString": "x"}, {"uint32Value": -1}, []],
)
def test_what_would_be_refused_does_not_fit(value, validator) -> None:
    assert not validator.is_valid(value)


def test_a_message_may_contain_itself(contract) -> None:
    schemas = Schemas(contract)
    schemas.message(contract.pool.FindMessageTypeByName("shop.v1.Nested"))
    nested = schemas.components["shop.v1.Nested"]
    assert nested["properties"]["nested"]["$ref"] == "#/components/schemas/shop.v1.Nested"


def test_a_oneof_says_that_its_members_exclude_one_another(contract) -> None:
    schema = Schemas(contract).object(contract.pool.FindMessageTypeByName("shop.v1.Everything"))
    assert schema["x-oneofs"] == [["chosenText", "chosenNumber", "chosenMessage"]]
    assert "at most one of `chosenText`, `chosenNumber`, `chosenMessage`" in schema["description"]


def test_wrapped_lines_of_a_comment_are_joined_and_paragraphs_are_kept(contract) -> None:
    schemas = Schemas(contract)
    contract._comments["x"] = "One line\nand its rest.\n\nA paragraph:\n- a point\n- another"
    assert schemas.comment("x") == "One line and its rest.\n\nA paragraph:\n- a point\n- another"
