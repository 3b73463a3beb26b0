"""Measures the values of tensors in one pass over their bytes: moments, extremes, defects, a histogram.

Holds one block at a time. Moments are merged block by block in double precision (Pebay 2008, "Formulas for robust,
one-pass parallel computation of covariances and arbitrary-order statistical moments", equations 3.1 and 3.2).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from octavo.v1 import inspector_pb2 as pb
from services.inspector import findings
from services.inspector.reader import Reader
from services.inspector.tensor_values import BLOCK_BYTES, Numbers, blocks, subnormal_below

Doubles = npt.NDArray[np.float64]

_SHARES: Final = (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)
# A double's exponent has 11 bits with a bias of 1023.
_EXPONENTS: Final = 2048
_BIAS: Final = 1023
# The largest finite fp16 is 65504; from 65520 on a value rounds to infinity, up to 2^-25 to zero.
_FP16_INFINITE_FROM: Final = 65520.0
_FP16_ZERO_TO: Final = 2.0**-25
# A normal distribution has 0, a Laplacian 3; weights with this much are ruled by a few outliers.
_OUTLIER_KURTOSIS: Final = 100.0


@dataclass(slots=True)
class Moments:
    """Count, mean and centred sums of powers 2 to 4."""

    count: int = 0
    mean: float = 0.0
    second: float = 0.0
    third: float = 0.0
    fourth: float = 0.0

    @classmethod
    def of(cls, values: Doubles) -> Moments:
        """The moments of some finite values."""
        if not values.size:
            return cls()
        mean = float(values.mean())
        centred = values - mean
        squared = centred * centred
        third, fourth = float(np.dot(squared, centred)), float(np.dot(squared, squared))
        return cls(values.size, mean, float(squared.sum()), third, fourth)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        if not self.count or not other.count:
            return other if other.count else self
        n_a, n_b = self.count, other.count
        n = n_a + n_b
        delta = other.mean - self.mean
        step = delta / n
        second = self.second + other.second + delta * step * n_a * n_b
        third = (
            self.third
            + other.third
            + delta * step**2 * n_a * n_b * (n_a - n_b)
            + 3 * step * (n_a * other.second - n_b * self.second)
        )
        fourth = (
            self.fourth
            + other.fourth
            + delta * step**3 * n_a * n_b * (n_a**2 - n_a * n_b + n_b**2)
            + 6 * step**2 * (n_a**2 * other.second + n_b**2 * self.second)
            + 4 * step * (n_a * other.third - n_b * self.third)
        )
        return Moments(n, self.mean + step * n_b, second, third, fourth)


class Measurement:
    """What is known of one tensor so far. Feed it every block in order, then ask for the statistics."""

    def __init__(self, tensor: pb.TensorDescription) -> None:
        self._result = pb.TensorStatistics(tensor=tensor, minimum=math.inf, maximum=-math.inf)
        self._moments = Moments()
        self._squares = 0.0
        self._histogram = np.zeros(_EXPONENTS, np.int64)
        self._digest = hashlib.sha256()
        self._seen = 0
        self._subnormal_below = subnormal_below(tensor.type)
        self._fp16_losses = 0
        row = tensor.size_bytes // tensor.shape[0] if len(tensor.shape) == 2 and tensor.shape[0] else 0
        self._row_length = tensor.shape[1] if 0 < row <= BLOCK_BYTES else 0

    # Squares and cubes of the largest doubles overflow to infinity: that is their sum, not a defect.
    @np.errstate(over="ignore", invalid="ignore")
    def add(self, data: bytes, numbers: Numbers) -> None:
        """Takes in the next block: its bytes and the numbers in them."""
        self._digest.update(data)
        values = numbers.astype(np.float64)
        finite = self._set_defects_aside(values)
        if finite.size:
            self._result.minimum = min(self._result.minimum, float(finite.min()))
            self._result.maximum = max(self._result.maximum, float(finite.max()))
        self._moments = self._moments.merge(Moments.of(finite))
        self._squares += float(np.dot(finite, finite))
        self._add_magnitudes(np.abs(finite))
        if self._row_length:
            self._add_rows(values.reshape(-1, self._row_length))
        self._seen += numbers.size

    def statistics(self) -> pb.TensorStatistics:
        """The statistics of all blocks."""
        result, moments = self._result, self._moments
        result.finite_count = moments.count
        result.digest = f"sha256:{self._digest.hexdigest()}"
        if not moments.count:
            result.minimum = result.maximum = 0.0
            return result
        variance = moments.second / moments.count
        result.mean = moments.mean
        result.standard_deviation = math.sqrt(variance)
        if 0 < variance < math.inf:
            result.skewness = moments.third / moments.count / variance**1.5
            result.excess_kurtosis = moments.fourth / moments.count / variance**2 - 3
        result.l2_norm = math.sqrt(self._squares)
        result.root_mean_square = math.sqrt(self._squares / moments.count)
        result.fp16_loss_share = self._fp16_losses / max(moments.count - result.zero_count, 1)
        self._fill_histogram()
        return result

    def _set_defects_aside(self, values: Doubles) -> Doubles:
        """Counts what is not finite; returns the rest."""
        is_finite = np.isfinite(values)
        if is_finite.all():
            return values
        result = self._result
        result.nan_count += int(np.isnan(values).sum())
        result.positive_infinity_count += int(np.isposinf(values).sum())
        result.negative_infinity_count += int(np.isneginf(values).sum())
        if not result.HasField("first_non_finite_index"):
            result.first_non_finite_index = self._seen + int(np.argmin(is_finite))
        return values[is_finite]

    def _add_magnitudes(self, magnitudes: Doubles) -> None:
        result = self._result
        zeros = int((magnitudes == 0).sum())
        result.zero_count += zeros
        result.l1_norm += float(magnitudes.sum())
        if self._subnormal_below:
            result.subnormal_count += int((magnitudes < self._subnormal_below).sum()) - zeros
        exponents = (magnitudes.view(np.uint64) >> np.uint64(52)).astype(np.int64)
        self._histogram += np.bincount(exponents, minlength=_EXPONENTS)
        lost = (magnitudes >= _FP16_INFINITE_FROM) | (magnitudes <= _FP16_ZERO_TO)
        self._fp16_losses += int(lost.sum()) - zeros

    def _add_rows(self, rows: Doubles) -> None:
        result = self._result
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        result.zero_row_count += int((norms == 0).sum())
        lowest, highest = float(norms.min(initial=math.inf)), float(norms.max(initial=0.0))
        is_first = not result.HasField("minimum_row_norm")
        result.minimum_row_norm = lowest if is_first else min(result.minimum_row_norm, lowest)
        result.maximum_row_norm = highest if is_first else max(result.maximum_row_norm, highest)

    def _fill_histogram(self) -> None:
        """Bins by power of two, and bounds of quantiles from them; zeros lie below every bin."""
        result = self._result
        # Zeros share the lowest exponent with the subnormal doubles.
        self._histogram[0] -= result.zero_count
        for filled in np.flatnonzero(self._histogram):
            result.histogram.add(exponent=int(filled) - _BIAS, count=int(self._histogram[filled]))
        below = result.zero_count + np.cumsum(self._histogram)
        for share in _SHARES:
            needed = math.ceil(share * self._moments.count)
            index = int(np.searchsorted(below, needed))
            bound = 0.0 if needed <= result.zero_count else math.ldexp(1.0, min(index - _BIAS + 1, 1023))
            result.quantiles.add(share=share, upper_bound=bound)


def measure(reader: Reader, tensor: pb.TensorDescription) -> pb.TensorStatistics:
    """The statistics of one tensor; reads each of its bytes once."""
    measurement = Measurement(tensor)
    for data, numbers in blocks(reader, tensor):
        measurement.add(data, numbers)
    return measurement.statistics()


def judge(statistics: pb.TensorStatistics) -> Iterator[pb.InspectionFinding]:
    """What the values say: defects first."""
    tensor = statistics.tensor
    subject = f"{tensor.path}: {tensor.name}" if tensor.path else tensor.name
    broken = tensor.element_count - statistics.finite_count
    if broken:
        yield findings.error(
            "values-not-finite",
            subject,
            f"{broken} of {tensor.element_count} values are NaN or infinite, the first at index "
            f"{statistics.first_non_finite_index}",
            "go back to a checkpoint from before training became unstable",
        )
    if tensor.digest and tensor.digest != statistics.digest:
        yield findings.error(
            "digest-mismatch",
            subject,
            f"its bytes have the digest {statistics.digest}, the manifest states {tensor.digest}",
            "do not use this version; publish it again",
        )
    if statistics.zero_row_count and len(tensor.shape) == 2:
        yield findings.info(
            "rows-zero",
            subject,
            f"{statistics.zero_row_count} of {tensor.shape[0]} rows are entirely zero: never trained, or pruned",
        )
    if statistics.excess_kurtosis > _OUTLIER_KURTOSIS and tensor.element_count > 1000:
        yield findings.info(
            "outliers",
            subject,
            f"a few values rule it (excess kurtosis {statistics.excess_kurtosis:.0f}): fewer bits will cost "
            "more here than elsewhere",
        )
