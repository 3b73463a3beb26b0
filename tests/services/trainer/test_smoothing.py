"""Folding factors in and out changes no function, and the search finds what makes rounding cheaper."""

import numpy as np
import pytest

from octavo.formats.architecture import Architecture
from octavo.formats.manifest import WEIGHTS_FILE
from octavo.formats.tensor_file import read_header, read_tensor, write_safetensors
from services.trainer.graph_session import GraphSession
from services.trainer.onnx_export import export_graph
from services.trainer.smoothing import fold, matrix, search, sites
from tests.services.trainer.small_models import SHAPES, architecture, write_model


def tensors_of(directory):
    header = read_header(directory / WEIGHTS_FILE)
    return {name: np.array(read_tensor(directory / WEIGHTS_FILE, entry)) for name, entry in header.tensors.items()}


def factors_of(a, seed=0):
    """Factors from 1/4 to 4 wherever they can be folded."""
    random = np.random.default_rng(seed)
    found = {}
    for site in sites(a):
        if site.makers:
            inputs = {"attention_out": a.kv_width, "mlp_out": a.mlp_width}.get(site.name.rpartition(".")[2], a.width)
            found[site.name] = np.exp2(random.uniform(-2, 2, inputs)).astype(np.float32)
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folded_model_is_the_same_function(tmp_path, shape):
    a = architecture(shape)
    directory = write_model(tmp_path, a)
    ids = np.random.default_rng(5).integers(0, a.vocab_size, (1, 40))
    export_graph(directory)
    wanted = GraphSession(directory / "model.onnx", a).feed_all(ids)
    folded = fold(a, tensors_of(directory), factors_of(a))
    write_safetensors(directory / WEIGHTS_FILE, folded)
    export_graph(directory)
    found = GraphSession(directory / "model.onnx", a).feed_all(ids)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", ["gpt2", "llama-untied-grouped"])
def test_folding_changes_only_what_it_says(tmp_path, shape):
    a = architecture(shape)
    before = tensors_of(write_model(tmp_path, a))
    kept = {name: tensor.copy() for name, tensor in before.items()}
    site = next(site for site in sites(a) if site.name == "layer.0.attention_out")
    after = fold(a, before, {site.name: factors_of(a)[site.name]})
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {*site.weights, *(name for name, _ in site.makers)}
    assert all(np.array_equal(before[name], kept[name]) for name in before)


def test_every_matrix_belongs_to_one_site():
    for shape in SHAPES:
        a = architecture(shape)
        named = [name for site in sites(a) for name in site.weights]
        embeddings = {"transformer.wte.weight", "transformer.wpe.weight", "model.embed_tokens.weight"}
        matrices = {name for name, size in a.tensors().items() if len(size) == 2} - embeddings
        assert set(named) - embeddings == matrices
        assert len(named) == len(set(named))


def test_the_search_evens_out_a_loud_channel_and_leaves_even_ones_alone():
    a = Architecture.derive("llama", vocab_size=50, context_length=32, width=64, layers=1, heads=4, head_size=16)
    site = sites(a)[0]
    random = np.random.default_rng(0)
    x = random.normal(0, 1, (200, 64)).astype(np.float32)
    weight = random.normal(0, 1, (64, 96)).astype(np.float32)

    def loss(x, weight):
        """Rounding to 6 bits a tensor, for activations only."""
        step = np.abs(x).max() / 32
        return float(np.square((np.rint(x / step) * step - x) @ weight).mean())

    loud = x.copy()
    loud[:, 7] *= 50
    factors = search(a, site, loud, weight, loss)
    assert factors.argmax() == 7
    assert factors[7] > 3 * np.median(factors)
    assert search(a, site, x, weight, lambda x, weight: 1.0) is None


def test_side_by_side_means_inputs_by_outputs(tmp_path):
    for shape in ("gpt2", "qwen3-wide-heads"):
        a = architecture(shape)
        (tmp_path / shape).mkdir()
        tensors = tensors_of(write_model(tmp_path / shape, a))
        qkv = matrix(a, tensors, sites(a)[0])
        assert qkv.shape == (a.width, a.attention_width + 2 * a.kv_width)
