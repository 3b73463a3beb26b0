"""Does a graph treat each row by itself? Asked of the graph before requests of different callers may share a run.

A graph that normalises over its batch, sorts it or sums it up gives a caller what depends on strangers. Two made-up
rows, run alone and together, tell.
"""

from threading import Timer

import numpy as np

from services.inference.datatypes import Datatype
from services.inference.tensor_session import Run, TensorSession, TensorSpec, refused
from services.inference.tensors import Array

ELEMENT_LIMIT = 1 << 24
"""Rows of more elements are not made up."""
DYNAMIC_SIZE = 4
"""What stands for a size that may vary."""
LIMIT_S = 60.0

# Kernels may add in another order for another number of rows: what a row may differ by, by element type.
_TOLERANCES = {"FP16": 2e-2, "BF16": 8e-2, "FP32": 1e-3, "FP64": 1e-6}


def mixes_rows(session: TensorSession) -> bool | None:
    """Whether a row's outputs depend on the other row; None where the graph cannot run made-up rows.

    Raises FailedPrecondition for a graph that runs for longer than a minute.
    """
    random = np.random.default_rng(0)
    if any(_size(spec) > ELEMENT_LIMIT for spec in session.inputs):
        return None
    rows = {spec.name: _made_up(spec, random) for spec in session.inputs}
    wanted = [spec.name for spec in session.outputs]
    run = Run()
    timer = Timer(LIMIT_S, run.interrupt)
    timer.start()
    try:
        together = session.run(rows, wanted, run)
        alone = [
            session.run({name: array[row : row + 1] for name, array in rows.items()}, wanted, run) for row in (0, 1)
        ]
    except Exception:  # values that the graph does not take: nothing is known of it
        if not timer.is_alive():
            raise refused(f"two rows take longer than {LIMIT_S:g} s") from None
        return None
    finally:
        timer.cancel()
    if any(output.shape[:1] != (2,) for output in together):
        return True
    return not all(
        _is_alike(spec.datatype, both[row : row + 1], one)
        for row in (0, 1)
        for spec, both, one in zip(session.outputs, together, alone[row], strict=True)
    )


def _sizes(spec: TensorSpec) -> list[int]:
    return [2, *(size if isinstance(size, int) else DYNAMIC_SIZE for size in spec.dimensions[1:])]


def _size(spec: TensorSpec) -> int:
    size = 1
    for dimension in _sizes(spec):
        size *= dimension
    return size


def _made_up(spec: TensorSpec, random: np.random.Generator) -> Array:
    """Values that most graphs take: noise, or 0 and 1 where a number may be an index."""
    sizes = _sizes(spec)
    if spec.datatype.name in _TOLERANCES:
        return random.standard_normal(sizes).astype(spec.datatype.dtype)
    numbers = random.integers(0, 2, sizes)
    if spec.datatype.name == "BYTES":
        return numbers.astype(str).astype(np.object_)
    return numbers.astype(spec.datatype.dtype)


def _is_alike(datatype: Datatype, one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    tolerance = _TOLERANCES.get(datatype.name)
    if tolerance is None:
        return bool(np.array_equal(one, other))
    first, second = one.astype(np.float64), other.astype(np.float64)
    scale = float(np.max(np.abs(second), initial=0.0, where=np.isfinite(second)))
    return bool(np.allclose(first, second, rtol=tolerance, atol=tolerance * scale, equal_nan=True))
