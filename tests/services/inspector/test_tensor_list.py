"""Tensors are listed page by page, filtered, each with where it lies and what it does."""

import numpy as np
import pytest

from octavo.errors import FailedPrecondition, InvalidArgument
from octavo.v1 import errors_pb2
from octavo.v1 import inspector_pb2 as pb
from services.inspector.tensor_list import list_tensors

VERSION = "models/poet/versions/1"


@pytest.fixture
def ask(open_files, bundle):
    def listed(**fields):
        return list_tensors(open_files(bundle), pb.ListTensorsRequest(artifact=VERSION, **fields))

    return listed


def test_pages_follow_one_another_without_gap_or_repetition(ask, architecture):
    names, token, sizes = [], "", []
    while True:
        page = ask(path="model.safetensors", page_size=7, page_token=token)
        names += [tensor.name for tensor in page.tensors]
        sizes.append(len(page.tensors))
        token = page.next_page_token
        if not token:
            break
    assert sorted(names) == sorted(architecture.tensors())
    assert page.total_size == len(names)
    assert set(sizes[:-1]) == {7}


def test_a_tensor_tells_type_shape_place_role_and_block(ask, bundle):
    (tensor,) = ask(path="model.safetensors", name_contains="h.1.mlp.c_fc.weight").tensors
    assert (tensor.type, list(tensor.shape)) == (pb.TENSOR_TYPE_FLOAT32, [64, 256])
    assert (tensor.role, tensor.block) == (pb.TENSOR_ROLE_FEED_FORWARD_UP, 1)
    values = np.frombuffer(bundle["model.safetensors"], np.float32, tensor.element_count, tensor.offset_bytes)
    assert 0.015 < values.std() < 0.025


def test_the_graphs_tensors_point_at_the_weights(ask):
    (tensor,) = ask(path="model.onnx", name_prefix="transformer.wte").tensors
    (own,) = ask(path="model.safetensors", name_prefix="transformer.wte").tensors
    assert tensor.data_path == "model.safetensors"
    assert tensor.tied_to == own.name
    assert tensor.offset_bytes == own.offset_bytes


def test_without_a_path_all_files_with_tensors_are_listed(ask, architecture):
    assert ask().total_size == 2 * len(architecture.tensors()) + 2


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"types": [pb.TENSOR_TYPE_UINT8]}, 1),
        ({"roles": [pb.TENSOR_ROLE_QUANTIZATION]}, 1),
        ({"roles": [pb.TENSOR_ROLE_TOKEN_EMBEDDING, pb.TENSOR_ROLE_POSITION_EMBEDDING]}, 2),
        ({"block": 0}, 12),
        ({"block": 0, "name_contains": "bias"}, 6),
        ({"block": 7}, 0),
        ({"name_prefix": "wte"}, 0),
    ],
)
def test_filters_narrow_the_list(ask, filters, count):
    assert ask(path="model.onnx", **filters).total_size == count


def test_a_token_belongs_to_one_question(ask):
    token = ask(page_size=1).next_page_token
    for other in ({"name_contains": "h"}, {"path": "model.onnx"}):
        with pytest.raises(InvalidArgument) as caught:
            ask(page_token=token, **other)
        assert caught.value.reason == errors_pb2.REASON_INVALID_PAGE_TOKEN
    assert ask(page_size=2, page_token=token).tensors[0].name != ask(page_size=1).tensors[0].name


@pytest.mark.parametrize("token", ["x", "ä", "AAAA", "=" * 22, "A" * 4000])
def test_a_made_up_token_is_refused(ask, token):
    with pytest.raises(InvalidArgument, match="page_token"):
        ask(page_token=token)


def test_a_negative_page_size_is_refused(ask):
    with pytest.raises(InvalidArgument, match="page_size"):
        ask(page_size=-1)


def test_a_file_without_tensors_is_refused_by_its_format(ask):
    with pytest.raises(FailedPrecondition, match="is JSON"):
        ask(path="config.json")
