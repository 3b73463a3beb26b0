import numpy as np
import pytest
from onnx import TensorProto, helper

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, GRAPH_FILE, write_json
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import write_safetensors
from services.trainer.graph_session import GraphSession
from services.trainer.onnx_export import export_graph


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    a = Architecture.derive("gpt2", vocab_size=31, context_length=32, width=32, layers=2, heads=2)
    random = np.random.default_rng(0)
    tensors = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in a.tensors().items()}
    write_safetensors(directory / WEIGHTS_FILE, tensors, {"format": "pt"})
    write_json(directory / CONFIG_FILE, a.to_config())
    export_graph(directory)
    return directory, a


IDS = np.random.default_rng(1).integers(0, 31, (2, 20))


def test_one_graph_answers_after_the_last_token_or_after_each(model):
    directory, a = model
    served, scoring = (GraphSession(directory / GRAPH_FILE, a) for _ in range(2))
    last, every = served.feed(IDS[:1]), scoring.feed_all(IDS[:1])
    assert last.shape == (1, 31)
    assert every.shape == (1, 20, 31)
    np.testing.assert_allclose(last, every[:, -1], rtol=0, atol=1e-5)


def test_each_row_means_the_tokens_it_was_given_and_no_padding(model):
    directory, a = model
    session, alone = GraphSession(directory / GRAPH_FILE, a), GraphSession(directory / GRAPH_FILE, a)
    session.reset(rows=2)
    session.feed(IDS, np.array([20, 7]))
    both = session.feed(IDS[:, :1])
    alone.feed(IDS[1:, :7])
    assert both[1].tobytes() == alone.feed(IDS[1:, :1])[0].tobytes()


def test_a_session_that_starts_over_forgets(model):
    directory, a = model
    session = GraphSession(directory / GRAPH_FILE, a)
    first = session.feed(IDS[:1])
    session.feed(IDS[1:, :5])
    session.reset(rows=1)
    assert session.feed(IDS[:1]).tobytes() == first.tobytes()


def test_a_completion_is_the_most_likely_token_each_time(model):
    directory, a = model
    session = GraphSession(directory / GRAPH_FILE, a)
    ids, logits = session.complete(IDS[0, :8], 12)
    assert ids.tolist() == logits.argmax(axis=1).tolist()
    text = np.concatenate([IDS[0, :8], ids])[None]
    every = GraphSession(directory / GRAPH_FILE, a).feed_all(text[:, :-1])
    np.testing.assert_allclose(logits, every[0, 7:], rtol=0, atol=1e-5)


def test_what_is_no_graph_of_ours_is_refused_with_its_name(tmp_path):
    a = Architecture.derive("gpt2", vocab_size=31, context_length=32, width=32, layers=2, heads=2)
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(FailedPrecondition, match=r"model\.onnx cannot be run"):
        GraphSession(tmp_path / "model.onnx", a)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "other", [value], [other])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FailedPrecondition, match="no input `answered`"):
        GraphSession(tmp_path / "model.onnx", a)
