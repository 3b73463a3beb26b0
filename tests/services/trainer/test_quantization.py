"""Few bits stand for what they should: to the last code where that can be said, to half a step everywhere else."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from services.trainer.quantization import (
    Range,
    cache_scales,
    fit_range,
    quantize_blocks,
    quantize_blocks_in_turn,
    quantize_columns,
)

numbers = st.floats(-100, 100, width=32)
matrices = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=numbers)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


@settings(deadline=None)
@given(matrices)
def test_a_column_comes_back_within_its_range_with_an_error_no_larger_than_plain_rounding(weight):
    columns = quantize_columns(weight)
    plain = np.abs(weight).max(axis=0) / 127
    restored = np.rint(weight / np.where(plain > 0, plain, 1)) * plain
    assert columns.values.min() >= -127
    errors = [np.square(found - weight, dtype=np.float64).sum(axis=0) for found in (columns.restored(), restored)]
    assert (errors[0] <= errors[1] * (1 + 1e-3) + 1e-9).all()


@settings(deadline=None)
@given(matrices, st.sampled_from([4, 8]))
def test_a_block_comes_back_with_an_error_of_a_step_at_most_where_it_is_not_clipped(weight, bits):
    blocks = quantize_blocks(weight, bits=bits, size=16)
    restored = blocks.restored()
    assert restored.shape == weight.shape
    widest = np.abs(weight).max(axis=0) / (1 << (bits - 1))
    plain = np.square(1.0 * widest) * len(weight)
    assert (np.square(restored - weight, dtype=np.float64).sum(axis=0) <= plain * (1 + 1e-3) + 1e-9).all()


def test_a_matrix_of_integers_is_kept_exactly():
    weight = np.random.default_rng(1).integers(-7, 8, (64, 5)).astype(np.float32)
    weight[0], weight[32] = -8, -8
    assert np.array_equal(quantize_blocks(weight, bits=4, size=32).restored(), weight)
    wide = np.random.default_rng(1).integers(-127, 128, (64, 5)).astype(np.float32)
    wide[0] = 127
    np.testing.assert_allclose(quantize_columns(wide).restored(), wide, rtol=1e-6)


def test_what_the_text_hardly_uses_is_what_may_be_wrong():
    weight, importance = drawn(32, 64), np.ones(32, np.float32)
    weight[0] *= 8
    importance[0] = 1e-6
    careful = quantize_blocks(weight, bits=4, size=32, importance=importance).restored()
    plain = quantize_blocks(weight, bits=4, size=32).restored()
    rest = [np.square((found - weight)[1:]).sum() for found in (careful, plain)]
    assert rest[0] < 0.8 * rest[1]


def test_inputs_that_go_together_make_up_for_one_anothers_errors():
    random = np.random.default_rng(0)
    rows = (random.normal(0, 1, (1000, 8)) @ random.normal(0, 1, (8, 75)) + random.normal(0, 0.1, (1000, 75))).astype(
        np.float32
    )
    weight = drawn(75, 24)
    importance = np.square(rows).mean(axis=0)
    apart = quantize_blocks(weight, bits=4, size=32, importance=importance)
    in_turn = quantize_blocks_in_turn(weight, rows, bits=4, size=32)
    assert in_turn.codes.shape == apart.codes.shape
    losses = [np.square(rows @ (found.restored() - weight)).mean() for found in (in_turn, apart)]
    assert losses[0] < 0.3 * losses[1]


@settings(deadline=None, max_examples=50)
@given(matrices, st.integers(1, 5))
def test_rounding_in_turn_takes_any_matrix_and_any_samples(weight, count):
    rows = np.tile(weight[:, 0], (count, 1))
    restored = quantize_blocks_in_turn(weight, rows, bits=4, size=16).restored()
    assert restored.shape == weight.shape
    assert np.isfinite(restored).all()


def test_zeros_stay_zeros():
    weight = np.zeros((40, 3), np.float32)
    assert not quantize_columns(weight).restored().any()
    assert not quantize_blocks(weight, bits=4, size=32).restored().any()
    assert not fit_range(weight).round_trip(weight).any()
    assert np.isfinite(cache_scales(np.zeros((2, 5, 8), np.float32))).all()


@settings(deadline=None)
@given(matrices)
def test_zero_is_a_code_of_its_own_in_every_range(x):
    found = fit_range(x)
    assert 0 <= found.zero_point <= 255
    assert found.scale > 0
    assert not found.round_trip(np.zeros((1, 1), np.float32)).any()


def test_a_range_cuts_a_lonely_outlier_and_keeps_what_all_values_need():
    lonely = drawn(65536, 4)
    lonely[0, 0] = 12
    assert fit_range(lonely).scale < 13 / 255
    whole = fit_range(np.linspace(-1, 3, 4096, dtype=np.float32)[:, None])
    assert whole.scale == pytest.approx(4 / 255, rel=0.02)
    assert whole.zero_point == 64


def test_a_caches_scale_is_that_of_its_own_channel():
    samples = drawn(2, 500, 8) * np.arange(1, 9, dtype=np.float32)
    scales = cache_scales(samples)
    assert scales.shape == (2, 8)
    codes = np.clip(np.rint(samples / scales[:, None]), -128, 127) * scales[:, None]
    assert np.square(codes - samples).mean() < 1e-3 * np.square(samples).mean()


def run(node, inputs, initializers):
    """What ONNX Runtime makes of one node."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], inputs)[0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [32, 75, 96])
def test_the_runtimes_kernel_reads_blocks_as_we_write_them_padded_ones_too(bits, inputs):
    weight, x = drawn(inputs, 24), drawn(5, inputs, seed=1)
    blocks = quantize_blocks(weight, bits=bits, size=32)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=24,
        bits=bits,
        block_size=32,
        accuracy_level=1,
    )
    found = run(node, {"x": x}, {"w": blocks.codes, "s": blocks.scales})
    np.testing.assert_allclose(found, x @ blocks.restored(), rtol=0, atol=1e-4)


def test_the_runtimes_kernel_reads_a_range_and_columns_as_we_write_them():
    weight, x = drawn(75, 24), drawn(5, 75, seed=1)
    found, columns = fit_range(x), quantize_columns(weight)
    scale, zero = np.array(found.scale, np.float32), np.array(found.zero_point, np.uint8)
    codes = (np.rint(x / scale) + zero).clip(0, 255)
    product = (codes - zero).astype(np.int64) @ columns.values.astype(np.int64)
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])
    back = run(node, {}, {"q": codes.astype(np.uint8), "s": scale, "z": zero})
    np.testing.assert_allclose(back, found.round_trip(x), rtol=1e-6)
    np.testing.assert_allclose(
        product * scale * columns.scales, found.round_trip(x) @ columns.restored(), rtol=0, atol=1e-4
    )
    assert Range(scale=1.0, zero_point=0).round_trip(np.array([-3.0, 300.0], np.float32)).tolist() == [0, 255]
