"""Who may import whom, what may be named how, and how long anything may be: the laws of the tree."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from statistics import quantiles

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("octavo", "services", "gateway")
SERVICES = ("registry", "trainer", "inference", "inspector")

FORBIDDEN = {"utils", "util", "common", "helpers", "misc", "base", "core", "manager", "shared", "constants", "handlers"}
EDGE_FILES = {"__init__", "__main__", "settings", "servicer"}


def modules():
    """Every module of ours that a person wrote, as (dotted name, path)."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "_pb2" not in path.name:
                yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def imports(path):
    """The dotted names a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(root_names):
    """The modules of ours that import one of the named packages."""
    return {name for name, path in modules() if any(imported.split(".")[0] in root_names for imported in imports(path))}


def inside(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_imports_another_or_the_gateway(service):
    others = [f"services.{other}" for other in SERVICES if other != service] + ["gateway"]
    for name, path in modules():
        if inside(name, f"services.{service}"):
            assert not [imported for imported in imports(path) if inside(imported, *others)], name


def test_the_gateway_imports_no_service_and_the_library_no_program():
    for name, path in modules():
        if inside(name, "gateway", "octavo"):
            programs = ("services",) if inside(name, "gateway") else ("services", "gateway")
            assert not [imported for imported in imports(path) if inside(imported, *programs)], name


def test_client_serving_and_formats_do_not_know_one_another():
    rooms = ("octavo.client", "octavo.serving", "octavo.formats")
    for name, path in modules():
        for room in rooms:
            if inside(name, room):
                strangers = [other for other in rooms if other != room] + ["octavo.cli"]
                assert not [imported for imported in imports(path) if inside(imported, *strangers)], name


ALLOWED = {
    "torch": ("services.trainer",),
    "onnxruntime": (
        "services.inference",
        "services.trainer.graph_session",
        "services.trainer.parity",
        "services.inspector.system",
        "services.inspector.benchmark",
    ),
    "sqlalchemy": ("services.registry", "services.trainer.jobs"),
    "sqlite3": ("services.registry", "services.trainer.jobs"),
    "starlette": ("gateway",),
    "uvicorn": ("gateway",),
    "typer": ("octavo.cli",),
    "rich": ("octavo.cli",),
}


@pytest.mark.parametrize("library", ALLOWED)
def test_a_library_is_used_only_where_it_belongs(library):
    strays = [name for name in importers({library}) if not inside(name, *ALLOWED[library])]
    assert not strays


def test_domain_code_knows_no_grpc():
    edges = ("servicer", "__init__", "__main__")
    strays = [
        name
        for name in importers({"grpc"})
        if inside(name, *(f"services.{service}" for service in SERVICES)) and not name.rsplit(".", 1)[1].endswith(edges)
    ]
    assert not strays


def test_only_settings_reads_the_environment():
    for name, path in modules():
        if name != "octavo.serving.settings":
            reads = [
                node
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
            ]
            assert not reads, name


def test_modules_are_named_for_nouns_of_their_own():
    for name, path in modules():
        assert path.stem not in FORBIDDEN, name
        if path.stem not in EDGE_FILES:
            assert path.stem not in sys.stdlib_module_names, f"{name} is named like a module of Python"


def test_every_module_says_what_it_is_for():
    assert not [name for name, path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]


def functions():
    for name, path in modules():
        if "migrations" in name:
            continue  # a migration is a list of tables
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_functions_are_short_enough_to_read_at_a_glance():
    lengths = dict(functions())
    assert not {name: length for name, length in lengths.items() if length > 60}
    assert quantiles(lengths.values(), n=10)[-1] <= 25


def test_files_are_one_noun_long():
    assert not {name: lines for name, path in modules() if (lines := len(path.read_text().splitlines())) > 400}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_nothing_committed_names_the_machine_it_was_made_on():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    named = [path for path in tracked if (ROOT / path).is_file() and bytes(ROOT) + b"/" in (ROOT / path).read_bytes()]
    assert not named


def test_the_library_imports_without_the_programs_dependencies():
    """The wheel's own imports stay light: no torch, no ONNX Runtime, no web server."""
    code = "import sys, octavo.client, octavo.serving, octavo.formats.bundle; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    heavy = {"torch", "onnxruntime", "onnx", "starlette", "uvicorn", "sqlalchemy"} & set(result.stdout.split())
    assert not heavy
