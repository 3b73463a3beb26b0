"""Two artifacts are compared tensor by tensor, exactly, without reading what a digest already says."""

import ml_dtypes
import numpy as np
import pytest

from octavo.formats.tensor_file import write_safetensors
from octavo.v1 import inspector_pb2 as pb
from services.inspector.comparison import compare

RANDOM = np.random.default_rng(11)
BASE = {name: RANDOM.normal(size=(700, 600)).astype(np.float32) for name in ("a", "b", "c")}


@pytest.fixture
def compared(open_files, tmp_path):
    def ask(ours, theirs, digests=None, other_digests=None, **fields):
        opened = []
        for tensors, known in ((ours, digests), (theirs, other_digests)):
            write_safetensors(tmp_path / "w", tensors)
            opened.append(open_files({"model.safetensors": (tmp_path / "w").read_bytes()}, known))
        result = compare(*opened, pb.CompareArtifactsRequest(**fields))
        result_bytes = opened[0].budget.fetched_bytes
        return result, result_bytes

    return ask


def test_an_artifact_is_identical_to_itself(compared):
    result, _ = compared(BASE, BASE)
    assert result.is_identical
    assert result.identical_count == 3
    assert result.relative_change == 0
    assert [item.cosine_similarity for item in result.differences] == pytest.approx([1, 1, 1])


def test_equal_digests_spare_reading_the_values(compared):
    digests = {name: f"sha256:{name}" for name in BASE}
    result, read_bytes = compared(BASE, BASE, digests, digests)
    assert result.is_identical
    assert read_bytes < 100_000


def test_changes_are_measured_as_numpy_does_and_sorted_by_size(compared):
    changed = BASE | {"b": BASE["b"] * 1.5, "c": BASE["c"].copy()}
    changed["c"][3, 4] = -changed["c"][3, 4]
    result, _ = compared(changed, BASE)
    assert [item.name for item in result.differences] == ["b", "c", "a"]
    b, c, a = result.differences
    assert b.relative_change == pytest.approx(0.5, rel=1e-6)
    assert b.changed_share == pytest.approx((changed["b"] != BASE["b"]).mean())
    assert b.maximum_change == pytest.approx(np.abs(BASE["b"]).max() / 2, rel=1e-6)
    assert b.cosine_similarity == pytest.approx(1)
    assert c.changed_share == c.sign_flip_share == pytest.approx(1 / c.tensor.element_count)
    assert a.kind == pb.DIFFERENCE_KIND_IDENTICAL
    assert (result.changed_count, result.identical_count) == (2, 1)
    distance = sum(np.sum((changed[name].astype(float) - BASE[name]) ** 2) for name in BASE)
    assert result.relative_change == pytest.approx(
        np.sqrt(distance / sum(np.sum(array.astype(float) ** 2) for array in BASE.values()))
    )
    assert [finding.code for finding in result.findings] == ["partly-changed"]


def test_added_removed_reshaped_and_retyped_tensors_are_told_apart(compared):
    ours = {"new": np.ones(3, np.float32), "a": BASE["a"].T, "b": BASE["b"].astype(ml_dtypes.bfloat16)}
    result, _ = compared(ours, BASE)
    kinds = {item.name: item.kind for item in result.differences}
    assert kinds == {
        "new": pb.DIFFERENCE_KIND_ADDED,
        "a": pb.DIFFERENCE_KIND_RESHAPED,
        "b": pb.DIFFERENCE_KIND_RETYPED,
        "c": pb.DIFFERENCE_KIND_REMOVED,
    }
    retyped = next(item for item in result.differences if item.name == "b")
    assert 0 < retyped.relative_change < 2**-8
    assert (result.added_count, result.removed_count, result.changed_count) == (1, 1, 2)


def test_nan_against_nan_is_no_change_and_against_a_number_is_one(compared):
    base, ours = np.ones(4, np.float32), np.ones(4, np.float32)
    base[:2] = np.nan
    ours[0] = np.nan
    result, _ = compared({"x": ours}, {"x": base})
    assert result.differences[0].changed_share == 0.25
    assert result.differences[0].relative_change == 0


def test_unchanged_tensors_can_be_left_out_and_pages_follow(compared):
    changed = BASE | {"b": BASE["b"] + 1, "c": BASE["c"] + 2}
    first, _ = compared(changed, BASE, only_changed=True, page_size=1)
    assert first.total_size == 2
    second, _ = compared(changed, BASE, only_changed=True, page_size=1, page_token=first.next_page_token)
    assert [first.differences[0].name, second.differences[0].name] == ["c", "b"]
    assert not second.next_page_token


def test_strangers_have_nothing_in_common(compared):
    result, _ = compared({"x": np.ones(2)}, {"y": np.ones(2)})
    assert [finding.code for finding in result.findings] == ["nothing-in-common"]
