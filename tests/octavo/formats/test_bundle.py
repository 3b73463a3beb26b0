import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from octavo.errors import InvalidArgument, NotFound
from octavo.formats.architecture import Architecture
from octavo.formats.bundle import CONFIG_FILE, REQUIRED_FILES, Bundle, read_json, write_bundle
from octavo.formats.config_json import FAMILIES
from octavo.formats.manifest import WEIGHTS_FILE, Manifest
from octavo.formats.tensor_file import read_tensor, write_safetensors
from octavo.formats.tokenizer import TOKENIZER_FILE, Tokenizer

TEXT = "to be, or not to be:\nthat is the question — wörth 42 €.\n"


@pytest.fixture
def tokenizer():
    return Tokenizer.train_characters(TEXT, has_end=True)


def architecture(tokenizer, family="llama", **changes):
    sizes = {"context_length": 48, "width": 32, "layers": 2, "heads": 2, "head_size": 16}
    return Architecture.derive(family, vocab_size=tokenizer.vocab_size, **(sizes | changes))


def weights(a, seed=0):
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in a.tensors().items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_transformers_loads_model_and_tokenizer_unchanged(tmp_path, tokenizer, family, tie_embeddings):
    a = architecture(tokenizer, family, tie_embeddings=tie_embeddings)
    tensors = weights(a)
    write_bundle(tmp_path, architecture=a, tensors=tensors, tokenizer=tokenizer)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    for name, tensor in model.named_parameters():
        assert np.array_equal(tensor.detach().numpy(), tensors[name])
    assert AutoTokenizer.from_pretrained(tmp_path).encode(TEXT) == tokenizer.encode(TEXT)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == tokenizer.end_id


def test_an_opened_bundle_is_what_was_written(tmp_path, tokenizer):
    a = architecture(tokenizer)
    tensors = weights(a)
    written = write_bundle(tmp_path, architecture=a, tensors=tensors, tokenizer=tokenizer)
    bundle = Bundle.open(tmp_path)
    assert bundle.architecture == written.architecture == a
    assert bundle.tokenizer.encode(TEXT) == tokenizer.encode(TEXT)
    for name, entry in bundle.header.tensors.items():
        assert np.array_equal(read_tensor(tmp_path / WEIGHTS_FILE, entry), tensors[name])


def test_the_same_model_is_the_same_bytes(tmp_path, tokenizer):
    a = architecture(tokenizer)
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        write_bundle(tmp_path / name, architecture=a, tensors=weights(a), tokenizer=tokenizer)
    assert Manifest.of_directory(tmp_path / "1") == Manifest.of_directory(tmp_path / "2")


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_missing_file_is_named(tmp_path, tokenizer, name):
    a = architecture(tokenizer)
    write_bundle(tmp_path, architecture=a, tensors=weights(a), tokenizer=tokenizer)
    (tmp_path / name).unlink()
    with pytest.raises(NotFound, match=name):
        Bundle.open(tmp_path)


def test_weights_of_another_architecture_are_refused_tensor_by_tensor(tmp_path, tokenizer):
    a = architecture(tokenizer)
    tensors = weights(a)
    tensors["extra"] = tensors.pop("model.norm.weight")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].T
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].astype(np.float16)
    with pytest.raises(InvalidArgument) as caught:
        write_bundle(tmp_path, architecture=a, tensors=tensors, tokenizer=tokenizer)
    violations = caught.value.violations
    assert violations["tensors['model.norm.weight']"] == "is missing"
    assert "no place in a llama" in violations["tensors['extra']"]
    assert "asks for F32 [96, 32]" in violations["tensors['model.layers.0.mlp.up_proj.weight']"]
    assert "is F16" in violations["tensors['model.embed_tokens.weight']"]


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path, tokenizer):
    a = architecture(tokenizer)
    write_bundle(tmp_path, architecture=a, tensors=weights(a), tokenizer=tokenizer)
    larger = Tokenizer.train_characters(TEXT + "XYZ", has_end=True)
    (tmp_path / TOKENIZER_FILE).write_bytes(larger.to_bytes())
    with pytest.raises(InvalidArgument, match="room for"):
        Bundle.open(tmp_path)


def test_weights_that_are_no_weights_are_refused(tmp_path, tokenizer):
    a = architecture(tokenizer)
    write_bundle(tmp_path, architecture=a, tensors=weights(a), tokenizer=tokenizer)
    write_safetensors(tmp_path / WEIGHTS_FILE, {})
    with pytest.raises(InvalidArgument, match="is missing"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":"' + b"x" * (1 << 20) + b'"}'])
def test_a_json_file_that_is_no_small_object_is_refused(tmp_path, content):
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(InvalidArgument, match=CONFIG_FILE):
        read_json(tmp_path / CONFIG_FILE)


def test_a_config_is_complete_without_our_code(tmp_path, tokenizer):
    a = architecture(tokenizer)
    write_bundle(tmp_path, architecture=a, tensors=weights(a), tokenizer=tokenizer)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["eos_token_id"] == tokenizer.end_id
