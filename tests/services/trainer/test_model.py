"""The transformer computes what Hugging Face's implementation computes from the same weights."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from octavo.errors import InvalidArgument
from octavo.formats.architecture import Architecture
from services.trainer.model import IGNORED, Dropout, Transformer

SHAPES = {
    "gpt2": {"family": "gpt2", "heads": 4},
    "llama": {"family": "llama", "heads": 4, "kv_heads": 2},
    "qwen3": {"family": "qwen3", "heads": 4},
    "qwen3 grouped, wide heads, own head": {
        "family": "qwen3",
        "heads": 4,
        "kv_heads": 2,
        "head_size": 32,
        "tie_embeddings": False,
    },
}


def architecture(shape: str) -> Architecture:
    options = dict(SHAPES[shape])
    return Architecture.derive(options.pop("family"), vocab_size=65, context_length=48, width=64, layers=2, **options)


def model_with_random_weights(shape: str) -> Transformer:
    model = Transformer(architecture(shape))
    model.initialize(1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def reference(model: Transformer) -> torch.nn.Module:
    config = model.architecture.to_config()
    kind = config.pop("model_type")
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).eval()
    keys = theirs.load_state_dict(model.weights(), strict=False)
    tied = ["lm_head.weight"] if model.architecture.tie_embeddings else []
    assert (keys.missing_keys, keys.unexpected_keys) == (tied, [])
    return theirs


def tokens(rows: int = 2, length: int = 48) -> torch.Tensor:
    return torch.randint(0, 65, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_agree_with_transformers(shape: str) -> None:
    model = model_with_random_weights(shape)
    expected = reference(model)(tokens()).logits
    torch.testing.assert_close(model(tokens()), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_agree_with_transformers(shape: str) -> None:
    model = model_with_random_weights(shape)
    theirs = reference(model)
    model.loss(tokens(), tokens()).backward()
    logits = theirs(tokens()).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens().flatten(), reduction="sum").backward()
    ours = model.named_views({name: p.grad for name, p in model.named_parameters()})
    for name, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max()
        torch.testing.assert_close(ours[name] / scale, parameter.grad / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_have_the_names_and_shapes_of_the_architecture_and_load_back(shape: str) -> None:
    model = model_with_random_weights(shape)
    weights = model.weights()
    assert {n: tuple(w.shape) for n, w in weights.items()} == model.architecture.tensors()
    assert all(w.is_contiguous() and w.dtype == torch.float32 for w in weights.values())
    other = Transformer(model.architecture)
    other.load_weights(weights)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))


def test_bf16_stays_near_fp32() -> None:
    model = model_with_random_weights("qwen3")
    exact = model.loss(tokens(), tokens())
    rounded = model.loss(tokens(), tokens(), dtype=torch.bfloat16)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_a_position_does_not_see_what_comes_after_it() -> None:
    model = model_with_random_weights("qwen3")
    changed = tokens()
    changed[:, 30:] = 0
    torch.testing.assert_close(model(tokens())[:, :30], model(changed)[:, :30])


def test_the_blocked_kernel_of_long_contexts_agrees_with_the_dense_one() -> None:
    short = Architecture.derive("qwen3", vocab_size=9, context_length=600, width=32, layers=1, heads=2)
    model = Transformer(short)
    model.initialize(1)
    model.blocks[0].output.data.normal_(generator=torch.Generator().manual_seed(1))
    ids = torch.randint(0, 9, (1, 600), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(ids)[:, :500], model(ids[:, :500]), atol=1e-4, rtol=0)


def test_ignored_targets_count_neither_in_the_loss_nor_in_the_gradient() -> None:
    model = model_with_random_weights("qwen3")
    targets = tokens()
    targets[:, 20:] = IGNORED
    partial = model.loss(tokens(), targets)
    assert partial.item() == pytest.approx(model.loss(tokens()[:, :20], tokens()[:, :20]).item(), rel=1e-5)


def test_initialization_is_a_function_of_the_seed() -> None:
    first, again, other = (Transformer(architecture("qwen3")) for _ in range(3))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        model.initialize(seed)
    assert torch.equal(first.embedding, again.embedding)
    assert not torch.equal(first.embedding, other.embedding)


def test_dropout_is_replayed_by_its_seed_and_keeps_the_mean() -> None:
    x = torch.ones(100_000)
    drop = [Dropout(0.25, torch.Generator().manual_seed(seed))(x) for seed in (1, 1, 2)]
    assert torch.equal(drop[0], drop[1])
    assert not torch.equal(drop[0], drop[2])
    assert drop[0].mean().item() == pytest.approx(1.0, abs=0.01)


def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing() -> None:
    model = model_with_random_weights("qwen3")
    before = model.weights()
    weights = model.weights()
    weights["model.norm.weight"] = torch.ones(3)
    weights["stranger"] = torch.ones(1)
    del weights["model.embed_tokens.weight"]
    with pytest.raises(InvalidArgument) as refused:
        model.load_weights(weights)
    assert set(refused.value.violations) == {
        "weights.model.norm.weight",
        "weights.stranger",
        "weights.model.embed_tokens.weight",
    }
    assert all(torch.equal(w, before[n]) for n, w in model.weights().items())
