import json

import numpy as np
import onnx
import pytest

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, GRAPH_FILE
from services.inference.served_graph import ServedGraph


@pytest.fixture
def altered(bundles, tmp_path):
    """The graph of a bundle after a change of its model, opened."""

    def opened(change):
        directory = bundles()
        model = onnx.load(directory / GRAPH_FILE, load_external_data=False)
        change(model.graph)
        for path in directory.iterdir():
            (tmp_path / path.name).hardlink_to(path)
        (tmp_path / "altered.onnx").write_bytes(model.SerializeToString())
        architecture = Architecture.from_config(json.loads((directory / CONFIG_FILE).read_text()))
        return ServedGraph(tmp_path / "altered.onnx", architecture, threads=1, spin_us=0)

    return opened


def test_a_graph_of_another_contract_is_refused_with_the_difference(altered):
    def drop_hidden(graph):
        graph.output.remove(next(value for value in graph.output if value.name == "hidden"))

    with pytest.raises(FailedPrecondition, match="outputs hidden are missing"):
        altered(drop_hidden)


def test_a_file_that_is_no_graph_is_refused_in_the_runtimes_words(bundles, tmp_path):
    architecture = Architecture.from_config(json.loads((bundles() / CONFIG_FILE).read_text()))
    (tmp_path / GRAPH_FILE).write_bytes(b"no graph")
    with pytest.raises(FailedPrecondition, match="ONNX Runtime cannot load"):
        ServedGraph(tmp_path / GRAPH_FILE, architecture, threads=1, spin_us=0)


def test_a_cache_has_the_element_type_that_the_graph_reads(altered):
    graph = altered(lambda graph: None)
    cache = graph.new_cache(slots=3, capacity=16)
    assert {tensor.dtype for tensor in cache.tensors.values()} == {np.dtype(np.float32)}
    assert cache.size_bytes == 3 * graph.row_size_bytes(16)
