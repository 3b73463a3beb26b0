"""One pass over the bytes gives what numpy gives on the whole array, for every type and every defect."""

import hashlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from octavo.v1 import inspector_pb2 as pb
from services.inspector import tensor_values, weights

KINDS = {
    np.float32: pb.TENSOR_TYPE_FLOAT32,
    np.float64: pb.TENSOR_TYPE_FLOAT64,
    np.float16: pb.TENSOR_TYPE_FLOAT16,
    ml_dtypes.bfloat16: pb.TENSOR_TYPE_BFLOAT16,
    ml_dtypes.float8_e4m3fn: pb.TENSOR_TYPE_FLOAT8_E4M3,
    np.int8: pb.TENSOR_TYPE_INT8,
    np.int64: pb.TENSOR_TYPE_INT64,
    np.bool_: pb.TENSOR_TYPE_BOOL,
}


def described(array, kind, offset=3):
    return pb.TensorDescription(
        name="w",
        type=kind,
        shape=array.shape,
        element_count=array.size,
        size_bytes=array.nbytes,
        offset_bytes=offset,
    )


@pytest.fixture
def measure(read):
    def measured(array):
        data = b"abc" + np.ascontiguousarray(array).tobytes()
        return weights.measure(read(data), described(array, KINDS[array.dtype.type]))

    return measured


def assert_agrees(statistics, array):
    values = array.astype(np.float64).reshape(-1)
    finite = values[np.isfinite(values)]
    assert statistics.finite_count == finite.size
    assert statistics.nan_count == np.isnan(values).sum()
    assert statistics.positive_infinity_count == np.isposinf(values).sum()
    assert statistics.zero_count == (finite == 0).sum()
    assert statistics.digest == f"sha256:{hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
    assert sum(filled.count for filled in statistics.histogram) + statistics.zero_count == finite.size
    if finite.size:
        assert (statistics.minimum, statistics.maximum) == (finite.min(), finite.max())
        scale = max(np.abs(finite).max(), 1e-300)
        assert statistics.mean == pytest.approx(finite.mean(), rel=1e-9, abs=1e-12 * scale)
        assert statistics.standard_deviation == pytest.approx(finite.std(), rel=1e-7, abs=1e-9 * scale)
        assert statistics.l1_norm == pytest.approx(np.abs(finite).sum(), rel=1e-9)
        assert statistics.l2_norm == pytest.approx(np.sqrt((finite / scale) @ (finite / scale)) * scale, rel=1e-6)


@pytest.mark.parametrize("dtype", KINDS)
def test_every_type_is_measured_as_numpy_does(measure, dtype):
    array = (np.random.default_rng(1).normal(0, 3, (70, 30))).astype(dtype)
    assert_agrees(measure(array), array)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=9), elements=st.floats(width=32)))
def test_any_values_are_measured_as_numpy_does(measure, array):
    assert_agrees(measure(array), array)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 2**31), st.integers(1, 5), st.floats(-100, 100), st.floats(0.01, 100))
def test_moments_merged_from_blocks_are_the_moments_of_the_whole(seed, count, mean, scale):
    values = mean + scale * np.random.default_rng(seed).standard_exponential(1000)
    merged = weights.Moments()
    for block in np.array_split(values, count * 3):
        merged = merged.merge(weights.Moments.of(block))
    whole = weights.Moments.of(values)
    assert merged.mean == pytest.approx(whole.mean)
    for power in ("second", "third", "fourth"):
        assert getattr(merged, power) == pytest.approx(getattr(whole, power), rel=1e-6)


def test_a_tensor_of_many_blocks_is_measured_in_one_pass(read):
    array = np.random.default_rng(2).standard_normal((3000, 700)).astype(np.float32)
    array[17] = 0
    array[2000, 5] = np.nan
    data = array.tobytes()
    reader = read(data)
    statistics = weights.measure(reader, described(array, pb.TENSOR_TYPE_FLOAT32, 0))
    assert_agrees(statistics, array)
    assert sum(length for _, length in reader._source.fetches) == len(data)
    assert max(length for _, length in reader._source.fetches) <= tensor_values.BLOCK_BYTES
    assert statistics.first_non_finite_index == 2000 * 700 + 5
    assert statistics.zero_row_count == 1
    assert statistics.maximum_row_norm == pytest.approx(
        np.nanmax(np.linalg.norm(np.delete(array, 2000, axis=0), axis=1)), rel=1e-6
    )
    assert abs(statistics.skewness) < 0.01
    assert abs(statistics.excess_kurtosis) < 0.02


def test_the_bounds_of_quantiles_hold(measure):
    array = np.random.default_rng(3).standard_normal(10_000).astype(np.float32)
    array[:2000] = 0
    statistics = measure(array)
    for quantile in statistics.quantiles:
        assert (np.abs(array) <= quantile.upper_bound).mean() >= quantile.share
        assert (np.abs(array) < quantile.upper_bound / 2).mean() < quantile.share


def test_what_half_precision_would_lose_is_counted(measure):
    array = np.array([1e6, -1e9, 1e-9, 1.0, 0.0, 65504.0], np.float32)
    assert measure(array).fp16_loss_share == pytest.approx(3 / 5)
    with np.errstate(over="ignore"):
        halves = array.astype(np.float16)
    assert (np.isinf(halves) | ((halves == 0) & (array != 0))).sum() == 3


def test_subnormal_numbers_are_counted_by_their_own_type(measure):
    assert measure(np.array([1e-7, 1.0, 0], np.float16)).subnormal_count == 1
    assert measure(np.array([1e-7, 1.0, 0], np.float32)).subnormal_count == 0


@pytest.mark.parametrize(
    "array", [np.zeros((0, 4), np.float32), np.array(2.5, np.float32), np.full(3, np.nan, np.float32)]
)
def test_empty_scalar_and_all_broken_tensors_have_statistics(measure, array):
    assert_agrees(measure(array), array)


def codes(statistics):
    return [finding.code for finding in weights.judge(statistics)]


def test_defects_are_named(measure):
    assert codes(measure(np.ones((4, 4), np.float32))) == []
    assert codes(measure(np.array([1, np.inf], np.float32))) == ["values-not-finite"]
    assert codes(measure(np.array([[0, 0], [1, 2]], np.float32))) == ["rows-zero"]
    spiky = np.ones(2000, np.float32)
    spiky[3] = 1e6
    assert codes(measure(spiky)) == ["outliers"]
    statistics = measure(np.ones(3, np.float32))
    statistics.tensor.digest = "sha256:00"
    assert codes(statistics) == ["digest-mismatch"]
