"""The OpenAPI document: valid, complete, and true to what the gateway does."""

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

import octavo
from gateway import openapi
from gateway.contract import Contract, service_name
from gateway.routes import RouteTable
from gateway.settings import GatewaySettings
from octavo.addresses import CONTRACTS
from tests.gateway.conftest import SERVICE


@pytest.fixture(scope="module")
def document(contract) -> dict:
    return openapi.document(contract, RouteTable.of(contract, [SERVICE]))


@pytest.fixture(scope="module")
def suite() -> tuple[Contract, RouteTable, dict]:
    contract = Contract.load(GatewaySettings().contract)
    table = RouteTable.of(contract, {name for names in CONTRACTS.values() for name in names})
    return contract, table, openapi.document(contract, table)


def test_the_document_of_a_small_contract_is_valid(document) -> None:
    OpenAPIV31SpecValidator(document).validate()


def test_the_document_of_the_suite_is_valid(suite) -> None:
    OpenAPIV31SpecValidator(suite[2]).validate()
    assert suite[2]["info"]["version"] == octavo.__version__


def test_every_binding_of_the_suite_is_an_operation_with_words(suite) -> None:
    contract, table, document = suite
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    declared = [route for route in table.routes if route.is_declared]
    assert len(operations) == len(declared)
    assert all(operation["description"] for operation in operations)
    assert {operation["x-grpc-method"].split("/")[1] for operation in operations} <= {
        service_name(method) for method in contract.methods()
    }


def test_every_field_of_the_suite_has_words(suite) -> None:
    silent = [
        f"{name}.{key}"
        for name, schema in suite[2]["components"]["schemas"].items()
        if name.startswith("octavo.")
        for key, field in schema.get("properties", {}).items()
        if not field.get("description")
    ]
    assert silent == []


def test_a_resource_name_becomes_readable_path_parameters(document) -> None:
    operation = document["paths"]["/v1/shelves/{shelf}/books/{book}"]["get"]
    assert [parameter["name"] for parameter in operation["parameters"]] == ["shelf", "book"]
    assert operation["operationId"] == "Shop_GetBook"
    assert operation["parameters"][0]["required"] is True
    assert set(document["paths"]["/v1/shelves/{shelf}/books/{book}"]) == {"get", "patch", "delete"}


def test_an_additional_binding_is_an_operation_of_its_own(document) -> None:
    assert document["paths"]["/v1/books/{name}"]["get"]["operationId"] == "Shop_GetBook_2"


def test_query_parameters_are_what_path_and_body_leave_over(document) -> None:
    operation = document["paths"]["/v1/shelves/{shelf}/books"]["post"]
    assert {p["name"] for p in operation["parameters"] if p["in"] == "query"} == {"bookId", "validateOnly"}
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"] == "#/components/schemas/shop.v1.Book"


def test_nested_query_parameters_are_dotted(document) -> None:
    names = {p["name"] for p in document["paths"]["/v1/echo"]["get"]["parameters"]}
    assert {"int32Value", "nested.number", "nested.nested.text", "timestamp"} <= names
    assert "repeatedMessage" not in names


def test_a_patch_requires_nothing_and_a_create_what_the_contract_requires(document) -> None:
    patch = document["paths"]["/v1/shelves/{shelf}/books/{book}"]["patch"]["requestBody"]
    schema = patch["content"]["application/json"]["schema"]
    assert "required" not in schema
    assert "name" not in schema["properties"]
    assert document["components"]["schemas"]["shop.v1.Book"]["required"] == ["displayName"]


def test_enums_say_what_each_value_means(document) -> None:
    genre = document["components"]["schemas"]["shop.v1.Genre"]
    assert genre["enum"] == ["GENRE_UNSPECIFIED", "GENRE_POETRY", "GENRE_FICTION"]
    assert genre["x-enum-descriptions"]["GENRE_POETRY"] == "Verse."
    assert "`GENRE_POETRY`: Verse." in genre["description"]


def test_output_only_fields_are_read_only(document) -> None:
    assert document["components"]["schemas"]["shop.v1.Book"]["properties"]["createTime"]["readOnly"] is True


def test_streams_say_both_of_their_forms_and_how_to_resume(document) -> None:
    operation = document["paths"]["/v1/ticks:watch"]["get"]
    assert set(operation["responses"]["200"]["content"]) == {"application/x-ndjson", "text/event-stream"}
    assert [p["name"] for p in operation["parameters"] if p["in"] == "header"] == ["Last-Event-ID"]


def test_every_operation_says_how_it_fails(document) -> None:
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["responses"]["default"] == {"$ref": "#/components/responses/Error"}


async def test_the_document_is_served_with_an_etag(gateway) -> None:
    answer = await gateway.http.get("/openapi.json")
    assert answer.json()["openapi"] == "3.1.0"
    again = await gateway.http.get("/openapi.json", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_what_the_document_says_of_an_answer_is_what_comes(gateway, document) -> None:
    from openapi_schema_validator import OAS31Validator

    for path, method in (("/v1/shelves/1/books/2", "/v1/shelves/{shelf}/books/{book}"),):
        answer = (await gateway.http.get(path)).json()
        schema = document["paths"][method]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        OAS31Validator({**schema, "components": document["components"]}).validate(answer)
    everything = (
        await gateway.http.post("/v1/echo", json={"doubleValue": "NaN", "nested": {}, "int64Value": 7})
    ).json()
    schema = {"$ref": "#/components/schemas/shop.v1.Everything", "components": document["components"]}
    OAS31Validator(schema).validate(everything)
    failure = (await gateway.http.get("/v1/nothing")).json()
    OAS31Validator({"$ref": "#/components/schemas/Error", "components": document["components"]}).validate(failure)
