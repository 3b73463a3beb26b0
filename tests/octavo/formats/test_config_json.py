import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InvalidArgument
from octavo.formats.architecture import Architecture

SIZES = {"vocab_size": 65, "context_length": 64, "width": 96, "layers": 2, "heads": 6, "head_size": 16}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def config_of(family, **changes):
    return Architecture.derive(family, **SIZES).to_config() | changes


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("gpt2", "activation_function", "gelu"),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("llama", "hidden_act", "gelu"),
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("llama", "rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("llama", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("llama", "rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        ("qwen3", "use_sliding_window", True),
        ("qwen3", "layer_types", ["full_attention", "sliding_attention"]),
        ("qwen3", "layer_types", 7),
    ],
)
def test_a_config_that_asks_for_other_arithmetic_is_refused(family, key, value):
    with pytest.raises(InvalidArgument) as caught:
        Architecture.from_config(config_of(family, **{key: value}))
    assert caught.value.violations.keys() == {f"config.{key}"}


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(InvalidArgument, match="gpt2, llama, qwen3"):
        Architecture.from_config({"model_type": "bloom"})


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@given(data=st.data())
def test_whatever_a_config_holds_it_is_read_or_refused(family, data):
    config = config_of(family)
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=4)):
        if data.draw(st.booleans()):
            config[key] = data.draw(JSON)
        else:
            config.pop(key, None)
    try:
        architecture = Architecture.from_config(config)
    except InvalidArgument:
        return
    assert Architecture.from_config(architecture.to_config()) == architecture


def test_what_openai_published_as_gpt2_is_read_with_its_defaults():
    published = {
        "model_type": "gpt2", "activation_function": "gelu_new", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
        "n_layer": 12, "n_positions": 1024, "vocab_size": 50257, "layer_norm_epsilon": 1e-05,
    }  # fmt: skip
    assert Architecture.from_config(published).parameters == 124_439_808


def test_what_qwen_published_is_read_with_its_defaults():
    published = {
        "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
        "vocab_size": 151936,
    }  # fmt: skip
    assert Architecture.from_config(published).parameters == 596_049_920
