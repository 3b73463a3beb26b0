"""What the documents say of the tree, the settings and one another is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_the_reference_is_what_the_code_says(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs/reference/generate.py", tmp_path], cwd=ROOT, check=True)
    for page in ("settings.md", "errors.md", "checks.md"):
        current = (ROOT / "docs" / "reference" / page).read_text()
        assert current == (tmp_path / page).read_text(), "run `make reference`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_tree_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target.replace("\\", "")).exists(), target


def tree_of_the_readme():
    """The paths of the README's tree, by their indentation."""
    block = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    parent = ""
    for line in block.group(1).splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            yield parent + name
        else:
            parent = name
            yield name


def test_the_tree_in_the_readme_is_the_tree():
    listed = set(tree_of_the_readme())
    assert not [path for path in listed if not (ROOT / path).exists()]
    rooms = {"protos/octavo/v1/", "tests/", "benchmarks/", "examples/", "docs/", "k8s/", "gateway/"}
    for package in ("octavo", "services"):
        rooms |= {f"{package}/{path.name}/" for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()}
        rooms.add(f"{package}/")
    assert rooms <= listed
