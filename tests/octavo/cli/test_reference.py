"""The page about the command line says what the command line says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_page_of_the_command_line_is_up_to_date(tmp_path):
    script = ROOT / "docs" / "reference" / "generate_cli.py"
    subprocess.run([sys.executable, script, tmp_path], cwd=ROOT, check=True)
    current = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert current == (tmp_path / "cli.md").read_text(), "run `python docs/reference/generate_cli.py`"
