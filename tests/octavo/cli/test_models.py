from pathlib import Path

import pytest

from octavo.cli.failure import Refusal
from octavo.cli.models import inside


@pytest.mark.parametrize("path", ["config.json", "onnx/model.onnx"])
def test_a_file_of_a_version_lies_in_the_directory_asked_for(tmp_path: Path, path: str) -> None:
    assert inside(tmp_path / "poet", path) == tmp_path / "poet" / path


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", ".", "link/x"])
def test_a_path_that_leads_out_of_the_directory_is_refused(tmp_path: Path, path: str) -> None:
    directory = tmp_path / "poet"
    directory.mkdir()
    (directory / "link").symlink_to(tmp_path)
    with pytest.raises(Refusal, match="nothing was downloaded"):
        inside(directory, path)
