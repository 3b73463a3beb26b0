"""Compares the tensors of two artifacts: by digest where both state one, else value by value in lock-step.

Holds one block of each at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from octavo.v1 import inspector_pb2 as pb
from services.inspector import findings
from services.inspector.contents import Contents
from services.inspector.page_slices import page_of
from services.inspector.tensor_values import are_numbers, blocks
from services.inspector.value_questions import data_reader

Doubles = npt.NDArray[np.float64]
Kind = pb.DifferenceKind

# Most different first: what is not in both, then what cannot be compared, then by how much it changed.
_ORDER: Final = (
    Kind.DIFFERENCE_KIND_REMOVED,
    Kind.DIFFERENCE_KIND_ADDED,
    Kind.DIFFERENCE_KIND_RESHAPED,
    Kind.DIFFERENCE_KIND_CHANGED,
    Kind.DIFFERENCE_KIND_RETYPED,
    Kind.DIFFERENCE_KIND_IDENTICAL,
)
_CHANGED: Final = frozenset({Kind.DIFFERENCE_KIND_CHANGED, Kind.DIFFERENCE_KIND_RETYPED, Kind.DIFFERENCE_KIND_RESHAPED})


@dataclass(slots=True)
class _Sums:
    """What two streams of numbers add up to."""

    difference: float = 0.0
    square: float = 0.0
    baseline_square: float = 0.0
    product: float = 0.0
    maximum: float = 0.0
    changed: int = 0
    flipped: int = 0
    has_defects: bool = False


def compare(contents: Contents, baseline: Contents, request: pb.CompareArtifactsRequest) -> pb.ArtifactComparison:
    """How the artifact differs from the baseline; one page of tensors, most different first."""
    page = page_of(request, f"{contents.artifact.name}\0{baseline.artifact.name}")
    result = pb.ArtifactComparison(artifact=contents.artifact.name, baseline=baseline.artifact.name)
    changes = base = 0.0
    differences = []
    for difference, sums in _differences(contents, baseline, request.path):
        changes, base = changes + sums.difference, base + sums.baseline_square
        _count(result, difference)
        if not request.only_changed or difference.kind != Kind.DIFFERENCE_KIND_IDENTICAL:
            differences.append(difference)
    differences.sort(key=lambda item: (_ORDER.index(item.kind), -item.relative_change, item.name))
    items, result.next_page_token = page.slice(differences)
    result.differences.extend(items)
    result.total_size = len(differences)
    result.relative_change = math.sqrt(changes / base) if base else 0.0
    result.is_identical = not (result.changed_count or result.added_count or result.removed_count)
    result.findings.extend(_judge(result))
    return result


def _differences(contents: Contents, baseline: Contents, path: str) -> Iterator[tuple[pb.TensorDifference, _Sums]]:
    """Every tensor of either, with what its values add up to."""
    ours = {tensor.name: tensor for tensor in contents.tensors(_path(contents, path))}
    theirs = {tensor.name: tensor for tensor in baseline.tensors(_path(baseline, path))}
    for name, tensor in theirs.items():
        if name not in ours:
            kind = Kind.DIFFERENCE_KIND_REMOVED
            yield pb.TensorDifference(name=name, kind=kind, baseline_tensor=tensor), _Sums()
    for name, tensor in ours.items():
        if name not in theirs:
            yield pb.TensorDifference(name=name, kind=Kind.DIFFERENCE_KIND_ADDED, tensor=tensor), _Sums()
        else:
            yield _difference(contents, tensor, baseline, theirs[name])


def _path(contents: Contents, path: str) -> str:
    return path if path or contents.artifact.is_blob else contents.weights_path()


def _difference(
    contents: Contents, tensor: pb.TensorDescription, baseline: Contents, other: pb.TensorDescription
) -> tuple[pb.TensorDifference, _Sums]:
    result = pb.TensorDifference(name=tensor.name, tensor=tensor, baseline_tensor=other)
    if tensor.shape != other.shape:
        result.kind = Kind.DIFFERENCE_KIND_RESHAPED
        return result, _Sums()
    if tensor.digest and tensor.digest == other.digest and tensor.type == other.type:
        result.kind = Kind.DIFFERENCE_KIND_IDENTICAL
        result.cosine_similarity = 1.0
        return result, _Sums()
    if not (are_numbers(tensor) and are_numbers(other)):
        result.kind = Kind.DIFFERENCE_KIND_CHANGED
        return result, _Sums()
    sums = _add_up(contents, tensor, baseline, other)
    _fill(result, sums)
    return result, sums


def _add_up(contents: Contents, tensor: pb.TensorDescription, baseline: Contents, other: pb.TensorDescription) -> _Sums:
    """One pass over both in lock-step; blocks of different types hold different counts of numbers."""
    sums = _Sums()
    mine = (numbers for _, numbers in blocks(data_reader(contents, tensor), tensor))
    theirs = (numbers for _, numbers in blocks(data_reader(baseline, other), other))
    a = b = np.empty(0)
    while True:
        if not a.size:
            a = next(mine, np.empty(0)).astype(np.float64)
        if not b.size:
            b = next(theirs, np.empty(0)).astype(np.float64)
        count = min(a.size, b.size)
        if not count:
            return sums
        _add(sums, a[:count], b[:count])
        a, b = a[count:], b[count:]


def _add(sums: _Sums, a: Doubles, b: Doubles) -> None:
    # Two NaN are no change; one NaN is, and leaves no meaningful distance.
    differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
    is_finite = np.isfinite(a) & np.isfinite(b)
    sums.changed += int(differs.sum())
    sums.flipped += int((np.sign(a) * np.sign(b) < 0).sum())
    if not is_finite.all():
        sums.has_defects = True
        a, b = a[is_finite], b[is_finite]
    distance = a - b
    sums.difference += float(np.dot(distance, distance))
    sums.square += float(np.dot(a, a))
    sums.baseline_square += float(np.dot(b, b))
    sums.product += float(np.dot(a, b))
    sums.maximum = max(sums.maximum, float(np.abs(distance).max(initial=0.0)))


def _fill(result: pb.TensorDifference, sums: _Sums) -> None:
    count = max(result.tensor.element_count, 1)
    if result.tensor.type != result.baseline_tensor.type:
        result.kind = Kind.DIFFERENCE_KIND_RETYPED
    else:
        result.kind = Kind.DIFFERENCE_KIND_CHANGED if sums.changed else Kind.DIFFERENCE_KIND_IDENTICAL
    result.changed_share = sums.changed / count
    result.sign_flip_share = sums.flipped / count
    result.maximum_change = sums.maximum
    if sums.difference:
        result.relative_change = math.sqrt(sums.difference / sums.baseline_square) if sums.baseline_square else math.inf
    lengths = math.sqrt(sums.square) * math.sqrt(sums.baseline_square)
    result.cosine_similarity = sums.product / lengths if lengths else float(not sums.changed)


def _count(result: pb.ArtifactComparison, difference: pb.TensorDifference) -> None:
    if difference.kind == Kind.DIFFERENCE_KIND_IDENTICAL:
        result.identical_count += 1
    elif difference.kind in _CHANGED:
        result.changed_count += 1
    elif difference.kind == Kind.DIFFERENCE_KIND_ADDED:
        result.added_count += 1
    else:
        result.removed_count += 1


def _judge(result: pb.ArtifactComparison) -> Iterator[pb.InspectionFinding]:
    if result.added_count and result.removed_count and not (result.identical_count or result.changed_count):
        yield findings.warning(
            "nothing-in-common",
            "",
            "no tensor has the same name in both",
            "compare versions of one family, or files of one kind",
        )
    if result.changed_count and result.identical_count:
        yield findings.info(
            "partly-changed",
            "",
            f"{result.identical_count} tensors are equal to the bit beside {result.changed_count} changed ones: "
            "frozen layers, or an edit of a few",
        )
