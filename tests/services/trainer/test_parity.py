import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from octavo.errors import FailedPrecondition
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, GRAPH_FILE, write_json
from octavo.formats.config_json import FAMILIES
from octavo.formats.conformance import Conformance, log_probability
from octavo.formats.manifest import WEIGHTS_FILE, digest_file
from octavo.formats.tensor_file import read_header, read_tensor, write_safetensors
from octavo.v1.errors_pb2 import Reason
from services.trainer.graph_session import GraphSession
from services.trainer.onnx_export import export_graph
from services.trainer.parity import prove, record_conformance


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small are slower on several threads, much slower where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_model(directory, family="llama", context_length=64, spread=0.15, **changes):
    sizes = {"vocab_size": 67, "width": 96, "layers": 2, "heads": 6, "head_size": 16}
    a = Architecture.derive(family, context_length=context_length, **(sizes | changes))
    random = np.random.default_rng(3)
    gains = {name: len(shape) == 1 and name.endswith("weight") for name, shape in a.tensors().items()}
    tensors = {
        name: (random.normal(0, spread, shape) + gains[name]).astype(np.float32) for name, shape in a.tensors().items()
    }
    write_safetensors(directory / WEIGHTS_FILE, tensors, {"format": "pt"})
    write_json(directory / CONFIG_FILE, a.to_config())
    export_graph(directory)
    return a


def checkpoint(directory):
    model = AutoModelForCausalLM.from_pretrained(directory).eval()

    def logits(ids):
        with torch.inference_mode():
            return model(torch.from_numpy(ids)[None]).logits[0].numpy()

    return logits


def change_weight(directory, name, change):
    """The checkpoint altered after its graphs were made from the same bytes."""
    header = read_header(directory / WEIGHTS_FILE)
    tensors = {n: np.array(read_tensor(directory / WEIGHTS_FILE, e)) for n, e in header.tensors.items()}
    change(tensors[name])
    write_safetensors(directory / WEIGHTS_FILE, tensors, header.metadata)


def completer(directory, a):
    session = GraphSession(directory / GRAPH_FILE, a)

    def complete(prompt, count):
        ids, logits = session.complete(np.array(prompt), count)
        return ids.tolist(), [log_probability(row, code) for row, code in zip(logits, ids, strict=True)]

    return complete


@pytest.mark.parametrize("family", FAMILIES)
def test_a_faithful_export_is_proven_in_all_ways(tmp_path, family):
    write_model(tmp_path, family, context_length=256)
    proof = prove(tmp_path, checkpoint(tmp_path), texts=[list(range(50))])
    assert 0 < proof.largest_difference <= proof.tolerance == 1e-4
    assert proof.differences.keys() == {"whole", "chunked", "ragged", "greedy"}
    assert all(value > 0 for value in proof.differences.values())
    assert proof.probe_lengths == (256, 129, 9, 1, 50)
    assert (proof.greedy_tokens, proof.greedy_texts) == (200, 1)
    assert proof.graph_digest == digest_file(tmp_path / GRAPH_FILE)
    assert json.loads(json.dumps(proof.to_dict())) == proof.to_dict()


@pytest.mark.parametrize(("context_length", "texts"), [(1, 200), (8, 40), (64, 4)])
def test_a_short_context_is_covered_by_several_texts(tmp_path, context_length, texts):
    write_model(tmp_path, "gpt2", context_length)
    proof = prove(tmp_path, checkpoint(tmp_path))
    assert (proof.greedy_tokens, proof.greedy_texts) == (200, texts)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.1.mlp.gate_proj.weight",
        "model.layers.1.input_layernorm.weight",
        "model.norm.weight",
    ],
)
def test_a_checkpoint_that_moved_on_is_no_longer_what_the_graph_computes(tmp_path, name):
    write_model(tmp_path)
    reference = checkpoint(tmp_path)
    change_weight(tmp_path, name, lambda tensor: np.multiply(tensor, 1.01, out=tensor))
    with pytest.raises(FailedPrecondition) as caught:
        prove(tmp_path, reference)
    assert caught.value.reason == Reason.REASON_PARITY_FAILED
    assert float(caught.value.metadata["difference"]) > 1e-4


def test_a_large_vocabulary_shortens_all_probes_but_one(tmp_path):
    write_model(tmp_path, context_length=256, vocab_size=150_000, width=16, heads=1, layers=1)
    proof = prove(tmp_path, checkpoint(tmp_path), texts=[[7] * 256], greedy_tokens=5)
    assert proof.probe_lengths == (256, 111, 9, 1, 111)


def test_another_models_graph_fails_the_proof(tmp_path):
    (tmp_path / "other").mkdir()
    write_model(tmp_path)
    write_model(tmp_path / "other", norm_epsilon=0.05)
    (tmp_path / GRAPH_FILE).write_bytes((tmp_path / "other" / GRAPH_FILE).read_bytes())
    with pytest.raises(FailedPrecondition) as caught:
        prove(tmp_path, checkpoint(tmp_path))
    assert caught.value.metadata["way"] == "whole"


def test_a_nan_is_a_difference(tmp_path):
    write_model(tmp_path)
    reference = checkpoint(tmp_path)

    def poison(tensor):
        tensor[5] = np.nan

    change_weight(tmp_path, "model.norm.weight", poison)
    with pytest.raises(FailedPrecondition, match="by nan"):
        prove(tmp_path, reference)


def undecided(directory, margin):
    """The checkpoint, with the second best token ahead by `margin` everywhere.

    Both tokens move by half of it, so that no logit is off by more.
    """
    exact = checkpoint(directory)

    def logits(ids):
        found = exact(ids).copy()
        second, best = np.argsort(found, axis=1)[:, -2:].T
        rows = np.arange(len(ids))
        middle = (found[rows, best] + found[rows, second]) / 2
        found[rows, second], found[rows, best] = middle + margin / 2, middle - margin / 2
        return found

    return logits


def test_a_tie_within_the_tolerance_is_reported_not_hidden(tmp_path):
    # With weights as small as these all logits lie within 1e-5 of one another.
    write_model(tmp_path, spread=1e-5)
    proof = prove(tmp_path, undecided(tmp_path, 0.9e-4))
    assert proof.ties
    for tie in proof.ties:
        assert tie.graph != tie.reference
        assert 0 < tie.margin <= proof.tolerance


def test_a_greedy_text_that_goes_another_way_fails_even_where_every_logit_is_close(tmp_path):
    write_model(tmp_path, spread=1e-5)
    with pytest.raises(FailedPrecondition, match="greedy token"):
        prove(tmp_path, undecided(tmp_path, 1.8e-4))


def rounded(directory, noise):
    """The checkpoint in a coarser arithmetic: what it says depends a little on how much it reads at once."""
    exact = checkpoint(directory)
    return lambda ids: exact(ids) + np.float32(noise if len(ids) % 2 else 0)


def test_a_checkpoint_that_rounds_more_coarsely_is_allowed_more_and_the_proof_says_so(tmp_path):
    write_model(tmp_path)
    proof = prove(tmp_path, rounded(tmp_path, 2e-4))
    assert proof.checkpoint_noise == pytest.approx(2e-4, rel=0.1)
    assert proof.tolerance == pytest.approx(1e-3)
    assert 1e-4 < proof.largest_difference < 3e-4


def test_a_checkpoint_that_contradicts_itself_cannot_be_proven(tmp_path):
    write_model(tmp_path)
    with pytest.raises(FailedPrecondition, match="differs from itself") as caught:
        prove(tmp_path, rounded(tmp_path, 2e-3))
    assert caught.value.metadata["way"] == "noise"


def test_a_reference_of_another_shape_is_a_defect_of_the_caller(tmp_path):
    write_model(tmp_path)
    with pytest.raises(ValueError, match="the reference gave"):
        prove(tmp_path, lambda ids: np.zeros((len(ids), 3), np.float32))


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_hold_to_the_last_bit_where_they_were_recorded(tmp_path, family):
    a = write_model(tmp_path, family)
    recorded = record_conformance(tmp_path, texts=[list(range(20))])
    assert Conformance.read(tmp_path) == recorded
    vectors = recorded.precisions["fp32"].vectors
    assert len(vectors) == 9
    assert vectors[-1].prompt == tuple(range(20))
    verdict = recorded.verify("fp32", completer(tmp_path, a))
    assert (verdict.vectors, verdict.bit_exact) == (9, 9)


def test_vectors_do_not_hold_for_other_weights(tmp_path):
    a = write_model(tmp_path)
    recorded = record_conformance(tmp_path)
    change_weight(tmp_path, "model.norm.weight", lambda tensor: np.multiply(tensor, 1.05, out=tensor))
    with pytest.raises(FailedPrecondition) as caught:
        recorded.verify("fp32", completer(tmp_path, a))
    assert caught.value.reason == Reason.REASON_CONFORMANCE_FAILED


def test_a_second_precision_is_recorded_beside_the_first(tmp_path):
    write_model(tmp_path)
    record_conformance(tmp_path)
    both = record_conformance(tmp_path, precision="int8", tolerance=0.05)
    assert both.precisions.keys() == {"fp32", "int8"}
    assert both.precisions["int8"].tolerance == 0.05


def test_vectors_end_before_a_step_that_rounding_could_decide(tmp_path):
    a = write_model(tmp_path)
    tolerance = 0.05
    recorded = record_conformance(tmp_path, tolerance=tolerance)
    session = GraphSession(tmp_path / GRAPH_FILE, a)
    vectors = recorded.precisions["fp32"].vectors
    assert any(len(vector.greedy) < 32 for vector in vectors)
    for vector in vectors:
        _, logits = session.complete(np.array(vector.prompt), len(vector.greedy))
        top = np.sort(logits, axis=1)
        assert (top[:, -1] - top[:, -2] > 4 * tolerance).all()


def test_a_model_that_prefers_nothing_has_no_vectors(tmp_path):
    write_model(tmp_path)
    change_weight(tmp_path, "model.norm.weight", lambda tensor: tensor.fill(0))
    with pytest.raises(FailedPrecondition, match="train the model"):
        record_conformance(tmp_path)
