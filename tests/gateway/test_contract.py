"""The contract as the gateway reads it."""

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from gateway.contract import Contract, enum_of, grpc_path, inner, is_map, service_name


def test_comments_are_found_for_every_kind_of_declaration(contract) -> None:
    for name, words in {
        "shop.v1.Shop": "Sells books.",
        "shop.v1.Shop.GetBook": "Gets one book.",
        "shop.v1.Book": "A book.",
        "shop.v1.Book.display_name": "As printed on the cover.",
        "shop.v1.Genre": "What a book is about.",
        "shop.v1.Genre.GENRE_POETRY": "Verse.",
        "shop.v1.Everything.nothing": "",
    }.items():
        assert contract.comment(name) == words


def test_two_contracts_with_the_same_names_live_in_one_process(contract_path: Path) -> None:
    one, other = Contract.load(contract_path), Contract.load(contract_path)
    assert one.pool is not other.pool
    book = one.message_class(one.pool.FindMessageTypeByName("shop.v1.Book"))(name="x")
    again = other.message_class(other.pool.FindMessageTypeByName("shop.v1.Book")).FromString(book.SerializeToString())
    assert again.name == "x"


def test_an_rpc_knows_its_name_on_the_wire(contract) -> None:
    method = next(method for method in contract.methods() if method.name == "GetBook")
    assert (grpc_path(method), service_name(method)) == ("/shop.v1.Shop/GetBook", "shop.v1.Shop")


def test_resource_patterns_name_the_members_of_collections(contract) -> None:
    assert contract.resource_variables() == {"shelves": "shelf", "books": "book"}


def test_field_kinds_are_told_apart(message) -> None:
    fields = message("Everything").DESCRIPTOR.fields_by_name
    assert is_map(fields["string_map"])
    assert not is_map(fields["repeated_message"])
    assert inner(fields["nested"]).full_name == "shop.v1.Nested"
    assert enum_of(fields["enum_value"]).full_name == "shop.v1.Genre"
    with pytest.raises(TypeError, match="is a scalar"):
        inner(fields["string_value"])
    with pytest.raises(TypeError, match="is no enum"):
        enum_of(fields["string_value"])


def test_a_contract_without_comments_is_still_a_contract(contract_path: Path) -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString(contract_path.read_bytes())
    for file in files.file:
        file.ClearField("source_code_info")
    assert Contract(files).comment("shop.v1.Shop") == ""
