"""The cost of fewer bits is what rounding by hand gives, scheme by scheme."""

import numpy as np
import pytest

from octavo.errors import InvalidArgument
from octavo.formats.tensor_file import write_safetensors
from octavo.v1 import inspector_pb2 as pb
from services.inspector.quantization import analyze

Scheme = pb.QuantizationScheme
MATRIX = np.random.default_rng(4).normal(size=(50, 100)).astype(np.float32)


@pytest.fixture
def ask(open_files, tmp_path):
    def asked(tensors, **fields):
        write_safetensors(tmp_path / "w", tensors)
        return analyze(
            open_files({"model.safetensors": (tmp_path / "w").read_bytes()}), pb.AnalyzeQuantizationRequest(**fields)
        )

    return asked


def by_hand(matrix, levels, width):
    """Rounds group by group in plain loops; returns relative error, largest error and number of scales."""
    matrix = matrix.astype(float)
    errors, scales = [], 0
    for row in matrix:
        for start in range(0, len(row), width):
            group = row[start : start + width]
            scale = np.abs(group).max() / levels
            errors.append(np.rint(group / scale) * scale - group)
            scales += 1
    error = np.concatenate(errors)
    return np.sqrt((error**2).sum() / (matrix**2).sum()), np.abs(error).max(), scales


@pytest.mark.parametrize(
    ("scheme", "levels", "width", "bits"),
    [
        (Scheme.QUANTIZATION_SCHEME_INT8_CHANNEL, 127, 100, 8),
        (Scheme.QUANTIZATION_SCHEME_INT8_BLOCK_32, 127, 32, 8),
        (Scheme.QUANTIZATION_SCHEME_INT4_BLOCK_32, 7, 32, 4),
        (Scheme.QUANTIZATION_SCHEME_INT4_BLOCK_128, 7, 128, 4),
    ],
)
def test_each_scheme_rounds_as_by_hand(ask, scheme, levels, width, bits):
    error = ask({"w": MATRIX}, schemes=[scheme]).tensors[0].errors[0]
    relative, largest, scales = by_hand(MATRIX, levels, width)
    assert error.relative_error == pytest.approx(relative)
    assert error.maximum_error == pytest.approx(largest)
    assert error.signal_to_noise_db == pytest.approx(-20 * np.log10(relative))
    assert error.size_bytes == MATRIX.size * bits // 8 + 4 * scales


def test_one_scale_for_the_tensor_is_the_largest_of_all(ask):
    error = ask({"w": MATRIX}, schemes=[Scheme.QUANTIZATION_SCHEME_INT8_TENSOR]).tensors[0].errors[0]
    relative, _, _ = by_hand(MATRIX.reshape(1, -1), 127, MATRIX.size)
    assert error.relative_error == pytest.approx(relative)
    assert error.size_bytes == MATRIX.size + 4


def test_gpt2s_projections_have_their_outputs_in_columns(ask):
    columns = MATRIX * np.logspace(-3, 3, 100, dtype=np.float32)
    scheme = [Scheme.QUANTIZATION_SCHEME_INT8_CHANNEL]
    turned = ask({"h.0.attn.c_attn.weight": columns}, schemes=scheme).tensors[0].errors[0]
    plain = ask({"other": columns}, schemes=scheme).tensors[0].errors[0]
    assert turned.relative_error == pytest.approx(by_hand(columns.T, 127, 50)[0])
    assert turned.size_bytes == columns.size + 4 * 100
    assert plain.size_bytes == columns.size + 4 * 50


def test_only_trained_matrices_are_measured_worst_first_with_totals(ask):
    spiky = MATRIX.copy()
    spiky[:, 0] = 30
    tensors = {
        "good": MATRIX,
        "fine": MATRIX + 0,
        "spiky": spiky,
        "norm": np.ones(5, np.float32),
        "h.0.attn.bias": np.ones((4, 4), np.float32),
        "ids": np.ones((4, 4), np.int64),
    }
    result = ask(tensors, page_size=2)
    assert result.tensors[0].tensor.name == "spiky"
    assert result.total_size == 3
    assert result.next_page_token
    assert result.totals[0].size_bytes == 3 * (MATRIX.size + 4 * 50)
    assert [finding.subject for finding in result.findings] == ["model.safetensors: spiky"]
    assert [error.scheme for error in result.tensors[0].errors] == [
        Scheme.QUANTIZATION_SCHEME_INT8_CHANNEL,
        Scheme.QUANTIZATION_SCHEME_INT4_BLOCK_32,
    ]


def test_zeros_and_broken_values_do_no_harm(ask):
    matrix = np.zeros((3, 40), np.float32)
    matrix[0, 0] = np.nan
    error = ask({"w": matrix}).tensors[0].errors[0]
    assert error.relative_error == 0
    assert error.cosine_similarity == 1


def test_an_unknown_scheme_is_refused(ask):
    with pytest.raises(InvalidArgument, match="INT8_CHANNEL"):
        ask({"w": MATRIX}, schemes=[99])
