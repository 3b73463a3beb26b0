import pytest
import yaml

from octavo.formats.architecture import Architecture
from octavo.formats.lineage import DatasetDigest, Lineage
from octavo.formats.model_card import CARD_FILE, ModelCard
from octavo.formats.tokenizer import Tokenizer


@pytest.fixture
def card():
    tokenizer = Tokenizer.train_characters("abc")
    lineage = Lineage(
        specification={"width": 32},
        datasets=(DatasetDigest(name="datasets/tiny/versions/1", digest="sha256:" + "1" * 64),),
        seed=7,
        step=2_000,
        environment={"threads": 2},
    )
    architecture = Architecture.derive(
        "qwen3", vocab_size=3, context_length=64, width=32, layers=2, heads=2, kv_heads=1, head_size=16
    )
    return {"title": "Poet", "architecture": architecture, "tokenizer": tokenizer, "lineage": lineage}


def test_a_card_states_the_facts_and_nothing_that_was_not_given(tmp_path, card):
    ModelCard(**card).write(tmp_path)
    text = (tmp_path / CARD_FILE).read_text("utf-8")
    for fact in ("# Poet", f"{card['architecture'].parameters:,}", "sha256:" + "1" * 64, "2000", "2 of 16, 1 for keys"):
        assert fact in text
    for absent in ("Measured", "Proof", "job", "made from"):
        assert absent not in text


def test_the_head_is_yaml_that_a_hub_understands(card):
    head = yaml.safe_load(ModelCard(**card).text().split("---")[1])
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["octavo", "qwen3"],
    }


def test_losses_and_the_proof_are_shown_as_measured(card):
    proof = {"largest_difference": 1.26e-5, "tolerance": 1e-4, "positions": 395, "greedy_tokens": 200}
    text = ModelCard(**card, metrics={"validation_loss_nats": 1.46971234}, proof=proof).text()
    assert "| validation_loss_nats | 1.46971 |" in text
    assert "1.3e-05 (allowed 0.0001) over 395 positions" in text
    assert "200 greedy tokens" in text


def test_other_precisions_are_shown_with_what_they_lose(card):
    measured = {
        "is_measured": True,
        "perplexity": 4.8268,
        "perplexity_increase": 0.0015,
        "bits_per_byte": 2.271,
        "bits_per_byte_change": 0.0022,
        "held_out_tokens": 40000.0,
    }
    proof = {"precisions": {"int8": measured, "bf16": {"is_measured": False, "reason": "no kernels"}}}
    text = ModelCard(**card, proof=proof).text()
    assert "| `model.int8.onnx` | perplexity 4.8268 (+0.15% against fp32), bits per byte 2.2710 (+0.0022)" in text
    assert "| `model.bf16.onnx` | not measured: no kernels |" in text
    assert "## Proof" not in text


def test_a_title_cannot_open_sections_of_its_own(card):
    text = ModelCard(**(card | {"title": "Poet\n## Proof\nnone needed"})).text()
    assert "# Poet ## Proof none needed\n" in text
