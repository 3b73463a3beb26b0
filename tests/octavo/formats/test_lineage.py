import json

import pytest

import octavo
from octavo.errors import InvalidArgument
from octavo.formats.lineage import LINEAGE_FILE, DatasetDigest, Lineage


@pytest.fixture
def lineage():
    return Lineage(
        specification={"train": {"width": 384, "learning_rate": 0.001}},
        datasets=(DatasetDigest(name="datasets/tiny/versions/1", digest="sha256:" + "1" * 64),),
        seed=7,
        step=2_000,
        environment={"device": "cpu", "threads": 2},
        job="jobs/j-1",
    )


def test_a_lineage_comes_back_from_its_file(tmp_path, lineage):
    lineage.write(tmp_path)
    assert Lineage.read(tmp_path) == lineage
    assert lineage.code_version == octavo.__version__


def test_digests_depend_on_content_not_on_order(lineage):
    same = Lineage(
        specification={"train": {"learning_rate": 0.001, "width": 384}},
        datasets=lineage.datasets,
        seed=7,
        step=2_000,
        environment={"threads": 2, "device": "cpu"},
    )
    other = Lineage(specification={}, datasets=(), seed=7, step=1, environment={"threads": 1})
    assert same.specification_digest == lineage.specification_digest != other.specification_digest
    assert same.environment_fingerprint == lineage.environment_fingerprint != other.environment_fingerprint


def test_a_lineage_that_was_edited_is_refused(tmp_path, lineage):
    lineage.write(tmp_path)
    value = json.loads((tmp_path / LINEAGE_FILE).read_text())
    value["specification"]["train"]["width"] = 385
    (tmp_path / LINEAGE_FILE).write_text(json.dumps(value))
    with pytest.raises(InvalidArgument, match="digests"):
        Lineage.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"datasets": 7}'])
def test_what_is_no_lineage_is_refused(tmp_path, text):
    (tmp_path / LINEAGE_FILE).write_text(text)
    with pytest.raises(InvalidArgument, match=LINEAGE_FILE):
        Lineage.read(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidArgument):
        Lineage.read(tmp_path)
