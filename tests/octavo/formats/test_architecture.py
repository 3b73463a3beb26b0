import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from octavo.errors import InvalidArgument
from octavo.formats.architecture import Architecture
from octavo.formats.config_json import FAMILIES
from octavo.v1.errors_pb2 import Reason


@st.composite
def architectures(draw):
    family = draw(st.sampled_from(FAMILIES))
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * (1 if family == "gpt2" else draw(st.integers(1, 4)))
    head_size = 16 * draw(st.integers(1, 4))
    return Architecture.derive(
        family,
        vocab_size=draw(st.integers(1, 500)),
        context_length=draw(st.integers(1, 2048)),
        width=heads * (head_size if family == "gpt2" else draw(st.integers(1, 50))),
        layers=draw(st.integers(1, 4)),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        mlp_width=draw(st.one_of(st.none(), st.integers(1, 300))),
        norm_epsilon=draw(st.sampled_from([1e-5, 1e-6, 1e-8])),
        rope_theta=None if family == "gpt2" else draw(st.sampled_from([1e4, 5e5, 1e6])),
        tie_embeddings=draw(st.booleans()),
    )


def small(family, **changes):
    sizes = {"vocab_size": 65, "context_length": 64, "width": 96, "layers": 2, "heads": 6, "head_size": 16}
    return Architecture.derive(family, **(sizes | changes))


@given(architectures())
def test_a_config_says_all_that_makes_an_architecture(architecture):
    assert Architecture.from_config(architecture.to_config()) == architecture
    assert Architecture(**architecture.to_dict()) == architecture


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_tensors_and_parameters_are_those_of_transformers(family, tie_embeddings):
    grouped = {} if family == "gpt2" else {"kv_heads": 2}
    architecture = small(family, tie_embeddings=tie_embeddings, **grouped)
    config = architecture.to_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert architecture.tensors() == theirs
    assert architecture.parameters == model.num_parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_token_ids_are_explicit_so_that_no_default_of_transformers_applies(family):
    config = small(family).to_config(eos_token_id=3)
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, 3)


def test_rotary_families_say_theta_to_old_and_new_readers():
    config = small("llama", rope_theta=5e5).to_config()
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5


@pytest.mark.parametrize(
    ("family", "changes", "field", "advice"),
    [
        ("gpt2", {"width": 256, "heads": 6}, "heads", "try 4 or 8"),
        ("gpt2", {"width": 60, "heads": 5, "head_size": None}, "head_size", "multiple of 8"),
        ("gpt2", {"kv_heads": 2}, "kv_heads", "llama"),
        ("gpt2", {"rope_theta": 1e4}, "rope_theta", "learned"),
        ("llama", {"head_size": 24}, "head_size", "try 32 or 64"),
        ("llama", {"width": 100}, "heads", "try 4 or 5"),
        ("llama", {"kv_heads": 4}, "kv_heads", "try 2 or 3"),
        ("qwen3", {"rope_theta": float("nan")}, "rope_theta", "10000"),
        ("qwen3", {"norm_epsilon": 0.0}, "norm_epsilon", "1e-5"),
        ("llama", {"layers": 0}, "layers", "from 1 to"),
        ("llama", {"vocab_size": 1 << 40}, "vocab_size", "from 1 to"),
        ("llama", {"tie_embeddings": 1}, "tie_embeddings", "true or false"),
        ("rwkv", {}, "family", "gpt2, llama, qwen3"),
    ],
)
def test_what_cannot_be_is_refused_with_what_could(family, changes, field, advice):
    with pytest.raises(InvalidArgument) as caught:
        small(family, **changes)
    assert caught.value.reason == Reason.REASON_INVALID_ARCHITECTURE
    assert advice in caught.value.violations[f"architecture.{field}"]


def test_all_wrong_fields_are_named_at_once():
    with pytest.raises(InvalidArgument) as caught:
        small("llama", layers=0, width=-1, mlp_width=32)
    assert caught.value.violations.keys() == {"architecture.layers", "architecture.width"}


def test_a_swiglu_left_to_itself_is_eight_thirds_wide_in_steps_of_32():
    assert small("llama", width=384).mlp_width == 1024
    assert small("gpt2").mlp_width == 4 * 96


def test_flops_count_every_matrix_once_and_the_mean_causal_span():
    architecture = small("gpt2", layers=1, context_length=3)
    matrices = 96 * 288 + 96 * 96 + 2 * 96 * 384 + 65 * 96
    assert architecture.flops_per_token() == 2 * matrices + 2 * 2 * 96 * 2
    assert architecture.flops_per_token(1) == 2 * matrices + 2 * 2 * 96
    assert architecture.flops_per_token(is_training=True) == 3 * architecture.flops_per_token()


@given(architectures())
def test_an_untied_head_costs_memory_but_no_time(architecture):
    fields = architecture.to_dict()
    tied, untied = (Architecture(**(fields | {"tie_embeddings": flag})) for flag in (True, False))
    assert tied.flops_per_token() == untied.flops_per_token()
    assert untied.parameters - tied.parameters == architecture.vocab_size * architecture.width
    assert tied.parameters == sum(math.prod(shape) for shape in tied.tensors().values())


def test_the_cache_of_a_position_is_keys_and_values_of_every_layer():
    assert small("llama", kv_heads=2).kv_cache_bytes_per_token() == 2 * 2 * 2 * 16 * 4
