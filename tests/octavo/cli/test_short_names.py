"""Short forms of resource names."""

import pytest
import typer

from octavo.cli import short_names, wording


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("poet", "models/poet"),
        ("models/poet", "models/poet"),
        ("poet@champion", "models/poet@champion"),
        ("models/poet@champion", "models/poet@champion"),
        ("poet/3", "models/poet/versions/3"),
        ("poet/v3", "models/poet/versions/3"),
        ("poet/versions/3", "models/poet/versions/3"),
        ("models/poet/versions/3", "models/poet/versions/3"),
    ],
)
def test_a_version_has_short_forms(short, full):
    assert short_names.version(short) == full


def test_who_answers_is_a_model_unless_it_is_called_a_deployment():
    assert short_names.answerer("poet") == "models/poet"
    assert short_names.answerer("deployments/poet") == "deployments/poet"


def test_an_artifact_is_a_version_or_a_blob():
    assert short_names.artifact("sha256:ab") == "blobs/sha256:ab"
    assert short_names.artifact("blobs/sha256:ab") == "blobs/sha256:ab"
    assert short_names.artifact("poet/2") == "models/poet/versions/2"


def test_a_name_of_another_collection_is_refused():
    with pytest.raises(typer.BadParameter, match="not one of datasets/"):
        short_names.dataset("models/poet")


def test_an_empty_name_is_refused():
    with pytest.raises(typer.BadParameter, match="missing"):
        short_names.model("models/")


@pytest.mark.parametrize("full", ["models/poet/versions/3", "models/poet@champion", "models/poet"])
def test_the_compact_form_means_the_same(full):
    assert short_names.version(wording.compact(full)) == full
