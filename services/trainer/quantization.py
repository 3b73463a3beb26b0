"""Numbers in few bits: weight matrices, activations and caches as integers with scales chosen by least squares.

Pure functions of arrays in the layouts of ONNX Runtime's kernels (MatMulIntegerToFloat, MatMulNBits, QuantizeLinear,
GroupQueryAttention). A matrix is float32 [inputs, outputs]. Knows nothing of graphs, files or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# By how much the largest magnitude may be cut: what is clipped costs more than finer steps gain below this.
_COLUMN_SHRINKS: Final = tuple(np.linspace(0.7, 1.0, 7).tolist())
_BLOCK_SHRINKS: Final = tuple(np.linspace(0.6, 1.05, 10).tolist())
_RANGE_SHRINKS: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_CACHE_SHRINKS: Final = tuple(np.linspace(0.6, 1.0, 9).tolist())
# What is searched at once: bounds memory to a few copies of 12 MB, for a head of fifty thousand outputs too.
_COLUMNS_AT_ONCE: Final = 4096
_BLOCK_WEIGHTS_AT_ONCE: Final = 3 << 20
# Part of the mean square that is added to every input's own.
_DAMPING: Final = 0.01
# Below it a scale is a denormal or zero, by which nothing can be divided.
_SMALLEST_SCALE: Final = 1e-30


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A matrix as int8 with one scale for each output: weight = values * scales."""

    values: npt.NDArray[np.int8]
    scales: Floats

    def restored(self) -> Floats:
        """The matrix that the integers stand for, float32 [inputs, outputs]."""
        return self.values * self.scales


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A matrix as MatMulNBits reads it: weight = (code - middle) * scale, with a scale for each block of inputs.

    `codes` uint8 [outputs, blocks, size * bits / 8], `scales` float32 [outputs, blocks]; the middle code is half of
    all there are. The last block is padded where `size` does not divide `inputs`.
    """

    bits: int
    size: int
    inputs: int
    codes: npt.NDArray[np.uint8]
    scales: Floats

    def restored(self) -> Floats:
        """The matrix that the integers stand for, float32 [inputs, outputs]."""
        outputs, blocks = self.scales.shape
        codes = _unpacked(self.codes, self.bits).reshape(outputs, blocks, self.size)
        values = (codes - np.float32(1 << (self.bits - 1))) * self.scales[..., None]
        return np.ascontiguousarray(values.reshape(outputs, -1)[:, : self.inputs].T)


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a uint8 activation stands for: value = (code - zero_point) * scale, the same for a whole tensor."""

    scale: float
    zero_point: int

    def round_trip(self, x: Floats) -> Floats:
        """`x` as it comes back from its codes: rounded, and cut where it lies outside."""
        codes = np.rint(x / np.float32(self.scale)) + np.float32(self.zero_point)
        values: Floats = (np.clip(codes, 0, 255) - np.float32(self.zero_point)) * np.float32(self.scale)
        return values


def quantize_columns(weight: Floats, importance: Floats | None = None) -> Columns:
    """int8 by output. `importance` [inputs] weighs errors: the mean square of what each input is."""
    values = np.empty(weight.shape, np.int8)
    scales = np.empty(weight.shape[1], np.float32)
    for start in range(0, weight.shape[1], _COLUMNS_AT_ONCE):
        part = slice(start, start + _COLUMNS_AT_ONCE)
        values[:, part], scales[part] = _columns(weight[:, part], _weights_of_errors(weight, importance))
    return Columns(values=values, scales=scales)


def quantize_blocks(weight: Floats, *, bits: int, size: int, importance: Floats | None = None) -> Blocks:
    """4 or 8 bits by blocks of `size` inputs; `importance` as for columns."""
    inputs, outputs = weight.shape
    count = -(-inputs // size)
    padded = np.zeros((outputs, count * size), np.float32)
    padded[:, :inputs] = weight.T
    blocks = padded.reshape(outputs, count, size)
    errors = np.zeros(count * size, np.float32)
    errors[:inputs] = _weights_of_errors(weight, importance)
    codes = np.empty(blocks.shape, np.uint8)
    scales = np.empty((outputs, count), np.float32)
    rows = max(1, _BLOCK_WEIGHTS_AT_ONCE // (count * size))
    for start in range(0, outputs, rows):
        part = slice(start, start + rows)
        scales[part] = _block_scales(blocks[part], errors.reshape(count, size), bits)
        codes[part] = _block_codes(blocks[part], scales[part], bits)
    return Blocks(bits=bits, size=size, inputs=inputs, codes=_packed(codes, bits), scales=scales)


def quantize_blocks_in_turn(weight: Floats, rows: Floats, *, bits: int, size: int) -> Blocks:
    """Blocks whose later inputs make up for the errors of earlier ones; `rows` [n, inputs] are samples of them.

    GPTQ (Frantar et al. 2022) with scales by least squares: input by input, the error of a rounded row of the matrix
    is taken off the rows that are still to be rounded, in proportion to how the inputs go together.
    """
    inputs, outputs = weight.shape
    count = -(-inputs // size)
    left = np.zeros((count * size, outputs), np.float32)
    left[:inputs] = weight
    seen = np.zeros((len(rows), count * size), np.float32)
    seen[:, :inputs] = rows
    spread, errors = _spread_of_errors(seen), np.square(seen).mean(axis=0)
    codes = np.empty((count * size, outputs), np.uint8)
    scales = np.empty((outputs, count), np.float32)
    for block in range(count):
        part, rest = slice(block * size, (block + 1) * size), slice((block + 1) * size, None)
        turned = np.ascontiguousarray(left[part].T)[:, None]
        scales[:, block] = _block_scales(turned, errors[None, part], bits)[:, 0]
        codes[part], lost = _rounded_in_turn(left[part], scales[:, block], spread[part, part], bits)
        left[rest] -= spread[part, rest].T @ lost
    shaped = np.ascontiguousarray(codes.T).reshape(outputs, count, size)
    return Blocks(bits=bits, size=size, inputs=inputs, codes=_packed(shaped, bits), scales=scales)


def fit_range(x: Floats, importance: Floats | None = None) -> Range:
    """The uint8 range of least squared error over samples `x` [n, channels]; zero is always a code of its own.

    `importance` [channels] weighs the squares: how much of each channel the matrix behind it passes on.
    """
    low, high = min(0.0, float(x.min(initial=0))), max(0.0, float(x.max(initial=0)))
    weights = np.ones(x.shape[1], np.float32) if importance is None else importance
    candidates = [(ratio, ratio) for ratio in _RANGE_SHRINKS]
    best = _best_range(x, weights, low, high, candidates)
    # One end alone: an outlier is often on one side only.
    ends = [(ratio, best[1]) for ratio in _RANGE_SHRINKS] + [(best[0], ratio) for ratio in _RANGE_SHRINKS]
    return _range(low, high, *_best_range(x, weights, low, high, ends))


def cache_scales(samples: Floats) -> Floats:
    """Scales [kv_heads, head_size] of an int8 cache for `samples` [kv_heads, n, head_size] of keys or values."""
    largest = np.abs(samples).max(axis=1)
    best, least = _not_zero(largest / 127), np.full(largest.shape, np.inf, np.float32)
    for ratio in _CACHE_SHRINKS:
        scale = _not_zero(largest * np.float32(ratio / 127))
        codes = np.clip(np.rint(samples / scale[:, None]), -128, 127)
        error = np.square(codes * scale[:, None] - samples).sum(axis=1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _columns(weight: Floats, errors: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    largest = np.abs(weight).max(axis=0)
    best, least = _not_zero(largest / 127), np.full(largest.shape, np.inf, np.float32)
    for ratio in _COLUMN_SHRINKS:
        scale = _not_zero(largest * np.float32(ratio / 127))
        restored = np.clip(np.rint(weight / scale), -127, 127) * scale
        error = errors @ np.square(restored - weight)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return np.clip(np.rint(weight / best), -127, 127).astype(np.int8), best


def _block_scales(blocks: Floats, errors: Floats, bits: int) -> Floats:
    """Scales [outputs, blocks] with the least squared error of `blocks` [outputs, blocks, size].

    The value of largest magnitude gets the code furthest from the middle, whichever its sign: a scale may be negative.
    """
    index = np.abs(blocks).argmax(axis=2)[..., None]
    extreme = np.take_along_axis(blocks, index, axis=2)[..., 0]
    middle = 1 << (bits - 1)
    best, least = _not_zero(-extreme / middle), np.full(extreme.shape, np.inf, np.float32)
    for ratio in _BLOCK_SHRINKS:
        scale = _not_zero(extreme * np.float32(-ratio / middle))
        restored = (_block_codes(blocks, scale, bits) - np.float32(middle)) * scale[..., None]
        error = np.einsum("obs,bs->ob", np.square(restored - blocks), errors)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _block_codes(blocks: Floats, scale: Floats, bits: int) -> npt.NDArray[np.uint8]:
    codes = np.rint(blocks / scale[..., None]) + np.float32(1 << (bits - 1))
    within: npt.NDArray[np.uint8] = np.clip(codes, 0, (1 << bits) - 1).astype(np.uint8)
    return within


def _spread_of_errors(rows: Floats) -> Floats:
    """Upper triangle [inputs, inputs]: how far an error at one input is felt at each later one."""
    together = rows.T.astype(np.float64) @ rows / len(rows)
    # Few samples, or inputs that are always zero, leave it singular; a percent more on the diagonal changes little.
    together[np.diag_indices_from(together)] += _DAMPING * np.diag(together).mean() + _SMALLEST_SCALE
    return np.linalg.cholesky(np.linalg.inv(together)).T.astype(np.float32)


def _rounded_in_turn(block: Floats, scale: Floats, spread: Floats, bits: int) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Codes [size, outputs] of one block, and what is still to be made up for behind it; changes `block`."""
    middle = np.float32(1 << (bits - 1))
    codes, lost = np.empty(block.shape, np.uint8), np.empty_like(block)
    for at, row in enumerate(block):
        codes[at] = np.clip(np.rint(row / scale) + middle, 0, 2 * middle - 1)
        lost[at] = (row - (codes[at] - middle) * scale) / spread[at, at]
        block[at + 1 :] -= spread[at, at + 1 :, None] * lost[at]
    return codes, lost


def _best_range(
    x: Floats, weights: Floats, low: float, high: float, candidates: list[tuple[float, float]]
) -> tuple[float, float]:
    def error(ratios: tuple[float, float]) -> float:
        restored = _range(low, high, *ratios).round_trip(x)
        return float(np.square(restored - x).sum(axis=0, dtype=np.float64) @ weights)

    return min(candidates, key=error)


def _range(low: float, high: float, low_ratio: float, high_ratio: float) -> Range:
    low, high = low * low_ratio, high * high_ratio
    scale = max((high - low) / 255, _SMALLEST_SCALE)
    return Range(scale=float(np.float32(scale)), zero_point=int(np.clip(round(-low / scale), 0, 255)))


def _weights_of_errors(weight: Floats, importance: Floats | None) -> Floats:
    return np.ones(weight.shape[0], np.float32) if importance is None else importance.astype(np.float32)


def _not_zero(scale: npt.NDArray[Any]) -> Floats:
    """A column or block of zeros is all zeros with any scale."""
    return np.where(np.abs(scale) < _SMALLEST_SCALE, np.float32(1), scale).astype(np.float32)


def _packed(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Two codes of 4 bits in a byte, the first in its lower half."""
    if bits == 8:
        return codes
    return codes[..., 0::2] | np.left_shift(codes[..., 1::2], 4, dtype=np.uint8)


def _unpacked(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
