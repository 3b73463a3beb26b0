"""What a version can have wrong with it: refused with what was found, over the wire, while the one before serves on."""

import json
import re
import shutil

import numpy as np
import onnx
import pytest

from octavo.errors import FailedPrecondition
from octavo.formats.tensor_file import read_header
from octavo.v1.deployments_pb2 import DeploymentState
from octavo.v1.errors_pb2 import Reason
from octavo.v1.inference_pb2 import GenerateRequest, GenerationParameters

READY, FAILED = DeploymentState.DEPLOYMENT_STATE_READY, DeploymentState.DEPLOYMENT_STATE_FAILED
GRAPH, WEIGHTS, VECTORS = "model.onnx", "model.safetensors", "conformance.json"


def flip(path, place, bit=6):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def flip_in_graph(bundle):
    path = bundle / GRAPH
    flip(path, path.read_bytes().index(b"GroupQueryAttention") + 3)


def flip_in_weights(bundle):
    """The highest bit but one of the exponent of a number of the first norm: 1 becomes about 1e-38."""
    entry = read_header(bundle / WEIGHTS).tensors["transformer.h.0.ln_1.weight"]
    for number in range(8):
        flip(bundle / WEIGHTS, entry.offset + 4 * number + 3, bit=5)


def flip_in_vectors(bundle):
    path = bundle / VECTORS
    flip(path, path.read_bytes().index(b'"log_probabilities": [') + 40, bit=0)


def cut_weights(bundle):
    path = bundle / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def cut_graph(bundle):
    path = bundle / GRAPH
    path.write_bytes(path.read_bytes()[:-500])


def rename_input(bundle):
    model = onnx.load(bundle / GRAPH, load_external_data=False)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "lengths" if name == "seqlens_k" else name
    next(entry for entry in model.graph.input if entry.name == "seqlens_k").name = "lengths"
    (bundle / GRAPH).write_bytes(model.SerializeToString())


def make_cache_unknown(bundle):
    model = onnx.load(bundle / GRAPH, load_external_data=False)
    for entry in (*model.graph.input, *model.graph.output):
        if entry.name.startswith(("past_", "present_")):
            entry.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    (bundle / GRAPH).write_bytes(model.SerializeToString())


def spoil_weights_with_nan(bundle):
    entry = read_header(bundle / WEIGHTS).tensors["transformer.h.1.mlp.c_proj.bias"]
    content = bytearray((bundle / WEIGHTS).read_bytes())
    content[entry.offset : entry.offset + 4] = np.float32(np.nan).tobytes()
    (bundle / WEIGHTS).write_bytes(content)


def change_answer(bundle):
    content = json.loads((bundle / VECTORS).read_text())
    content["precisions"]["fp32"]["vectors"][1]["greedy"][2] ^= 1
    (bundle / VECTORS).write_text(json.dumps(content))


def drop_vectors_of_precision(bundle):
    content = json.loads((bundle / VECTORS).read_text())
    content["precisions"]["int8"] = content["precisions"].pop("fp32")
    (bundle / VECTORS).write_text(json.dumps(content))


@pytest.fixture
async def serving(suite, bundles):
    """A suite whose deployment answers with version 1."""
    assert (await suite.deploy(await suite.publish(bundles()))).state == READY
    return suite


async def answering_version(suite, model="deployments/poet"):
    asked = GenerationParameters(max_tokens=3)
    return (await suite.inference.Generate(GenerateRequest(model=model, prompt="TO BE", parameters=asked))).version


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (flip_in_graph, "ONNX Runtime cannot load model.onnx"),
        (flip_in_weights, r"vector 0 of fp32 does not hold on this machine: (token|log-prob)"),
        (flip_in_vectors, "conformance.json: "),
        (cut_weights, "model.safetensors"),
        (cut_graph, "ONNX Runtime cannot load model.onnx"),
        (rename_input, "inputs seqlens_k are missing; inputs lengths are unknown; export the version again"),
        (make_cache_unknown, "model.onnx"),
        (spoil_weights_with_nan, r"the logits after 3 tokens are not numbers \(nan\)"),
        (change_answer, r"vector 1 of fp32 does not hold on this machine: token 2 is \d+ instead of \d+"),
        (drop_vectors_of_precision, "there are no conformance vectors for fp32; there are for int8"),
    ],
    ids=lambda value: getattr(value, "__name__", "").replace("_", " "),
)
async def test_a_damaged_version_is_refused_with_what_was_found_and_the_old_one_serves_on(
    serving, bundles, tmp_path, spoil, says
):
    directory = tmp_path / "spoilt"
    shutil.copytree(bundles(), directory)
    spoil(directory)
    bad = await serving.publish(directory)
    deployment = await serving.deploy(bad)
    assert deployment.state == FAILED
    assert re.search(says, deployment.statuses[0].message)
    assert list(deployment.statuses[0].serving_versions) == ["models/poet/versions/1"]
    assert await answering_version(serving) == "models/poet/versions/1"
    with pytest.raises(FailedPrecondition, match=says) as caught:
        await answering_version(serving, bad)
    assert caught.value.reason == Reason.REASON_MODEL_REFUSED
