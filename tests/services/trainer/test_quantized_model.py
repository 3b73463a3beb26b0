"""Every family and odd shape in every precision: close to fp32, by the same contract, and no row knows of another."""

from collections import Counter

import numpy as np
import onnx
import pytest

from octavo.formats.bundle import graph_file, weights_file
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import read_header, read_tensor, write_safetensors
from services.trainer import quantized_model
from services.trainer.activations import observe
from services.trainer.graph_session import GraphSession
from services.trainer.half_model import write_half
from services.trainer.onnx_export import export_graph
from services.trainer.quantized_model import WRITERS
from services.trainer.smoothing import fold, sites
from tests.services.trainer.small_models import SHAPES, architecture, write_model

# The root mean square error of the logits, as a part of their own. Random weights amplify what is lost at each
# layer, trained ones hardly do; a wrong scale or operation gives 1 and more.
PRECISIONS = {"int8": 0.2, "int8_weights": 0.08, "int4": 0.5, "fp16": 0.01}


def windows_of(a, count=6, length=64):
    random = np.random.default_rng(3)
    return [random.integers(0, a.vocab_size, min(length, a.context_length)) for _ in range(count)]


@pytest.fixture(scope="module", params=SHAPES)
def made(request, tmp_path_factory):
    """A bundle in all precisions."""
    a = architecture(request.param)
    directory = write_model(tmp_path_factory.mktemp(request.param), a)
    export_graph(directory)
    seen = observe(directory, windows_of(a))
    for precision in ("int8", "int8_weights", "int4"):
        WRITERS[precision][0](directory, seen, lambda: None)
    write_half(directory, "fp16")
    return directory, a


def session_of(made, precision):
    return GraphSession(made[0] / graph_file(precision), made[1])


def graph_of(made, precision):
    return onnx.load(made[0] / graph_file(precision), load_external_data=False).graph


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_close_to_those_of_fp32_whole_and_through_the_cache(made, precision):
    ids = np.random.default_rng(9).integers(0, made[1].vocab_size, (1, 48))
    wanted = session_of(made, "fp32").feed_all(ids)
    session = session_of(made, precision)
    whole = session.feed_all(ids)
    session.reset(rows=1)
    parts = np.stack([session.feed(ids[:, :40]), *(session.feed(ids[:, [at]]) for at in range(40, 48))], axis=1)
    size = np.sqrt(np.square(wanted).mean())
    assert np.sqrt(np.square(whole - wanted).mean()) < PRECISIONS[precision] * size
    assert np.sqrt(np.square(parts - wanted[:, 39:]).mean()) < PRECISIONS[precision] * size


@pytest.mark.parametrize("precision", ["int8", "int8_weights", "int4"])
def test_a_row_has_the_same_bits_alone_and_in_a_ragged_batch(made, precision):
    a = made[1]
    lengths = np.array([17, 1, 40])
    ids = np.random.default_rng(4).integers(0, a.vocab_size, (3, 48))
    padded = np.where(np.arange(40) < lengths[:, None], ids[:, :40], 0)
    together, alone = session_of(made, precision), session_of(made, precision)
    together.reset(rows=3)
    batched = [together.feed(padded, lengths)]
    batched += [together.feed(ids[np.arange(3), lengths + step][:, None]) for step in range(8)]
    for row, length in enumerate(lengths):
        alone.reset(rows=1)
        single = [alone.feed(ids[row : row + 1, :length])]
        single += [alone.feed(ids[row : row + 1, length + step, None]) for step in range(8)]
        for ours, theirs in zip(batched, single, strict=True):
            assert ours[row].tobytes() == theirs[0].tobytes()


def test_the_contract_is_that_of_fp32_but_for_the_type_of_the_cache(made):
    wanted = graph_of(made, "fp32")
    types = {"int8": "int8", "int8_weights": "int8", "int4": "int8", "fp16": "float16"}
    for precision, cache in types.items():
        graph = graph_of(made, precision)
        for ours, theirs in ((graph.input, wanted.input), (graph.output, wanted.output)):
            assert [value.name for value in ours] == [value.name for value in theirs]
            for value, other in zip(ours, theirs, strict=True):
                found = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
                if value.name.startswith(("past_", "present_")):
                    assert found == cache
                else:
                    assert value.type == other.type


def test_w8a8_rounds_each_activation_once_with_a_constant_scale_for_all_who_read_it(made):
    graph = graph_of(made, "int8")
    counts = Counter(node.op_type for node in graph.node)
    assert counts["QuantizeLinear"] == len(sites(made[1]))
    assert "DynamicQuantizeLinear" not in counts
    assert "MatMul" not in counts
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulIntegerToFloat":
            assert {node.input[1], node.input[2], node.input[3], node.input[4]} <= stored.keys()
            assert onnx.numpy_helper.to_array(stored[node.input[2]]).shape == ()


def test_tensors_lie_in_a_file_of_their_own_and_the_embedding_is_not_copied(made):
    directory, a = made
    header = read_header(directory / weights_file("int4"))
    assert {"layer.0.qkv.weight", "layer.0.qkv.scales", "layer.0.key.scales", "head.weight"} <= header.tensors.keys()
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}["location"]
        for tensor in graph_of(made, "int4").initializer
        if tensor.external_data
    }
    embedding = "transformer.wte.weight" if a.family == "gpt2" else "model.embed_tokens.weight"
    assert places[embedding] == WEIGHTS_FILE
    assert set(places.values()) == {WEIGHTS_FILE, weights_file("int4")}
    assert not any(".attn." in name or "_proj" in name for name in header.tensors if name.endswith("weight"))


def rounding_error(directory, a, ids, wanted):
    """Of W8A8, as a part of the logits."""
    WRITERS["int8"][0](directory, observe(directory, windows_of(a)), lambda: None)
    found = GraphSession(directory / graph_file("int8"), a).feed_all(ids)
    return np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean())


@pytest.mark.parametrize("shape", ["gpt2", "llama-untied-grouped", "qwen3"])
def test_channels_that_are_louder_than_others_cost_w8a8_little(tmp_path, shape, monkeypatch):
    """As large models have them: the same function, with one channel of each activation made 60 times as loud."""
    a = architecture(shape)
    directory = write_model(tmp_path, a)
    header = read_header(directory / WEIGHTS_FILE)
    tensors = {name: np.array(read_tensor(directory / WEIGHTS_FILE, entry)) for name, entry in header.tensors.items()}
    loud = {}
    for site in sites(a):
        if site.name.endswith(("qkv", "mlp_in")):
            loud[site.name] = np.ones(a.width, np.float32)
            loud[site.name][11] = 1 / 60
    write_safetensors(directory / WEIGHTS_FILE, fold(a, tensors, loud), {"format": "pt"})
    export_graph(directory)
    ids = np.random.default_rng(9).integers(0, a.vocab_size, (1, 48))
    wanted = GraphSession(directory / graph_file("fp32"), a).feed_all(ids)
    smoothed = rounding_error(directory, a, ids, wanted)
    monkeypatch.setattr(quantized_model, "search", lambda *_: None)
    assert smoothed < 0.6 * rounding_error(directory, a, ids, wanted)


def test_the_same_checkpoint_and_text_give_the_same_bytes(tmp_path):
    a = architecture("llama-untied-grouped")
    contents = []
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        directory = write_model(tmp_path / name, a)
        export_graph(directory)
        seen = observe(directory, windows_of(a))
        for precision in ("int8", "int4"):
            WRITERS[precision][0](directory, seen, lambda: None)
        files = [file(precision) for precision in ("int8", "int4") for file in (graph_file, weights_file)]
        contents.append([(directory / file).read_bytes() for file in files])
    assert contents[0] == contents[1]
