"""Generates octavo/v1 and octavo/open_inference from the protos: `python protos/generate.py [DIRECTORY]`.

The well-known protos come from the wheels (`googleapis-common-protos`, `grpcio-tools`), so no copy of them
lives here. contract.binpb is the whole contract with its comments: the gateway's routes and docs read it.
"""

import sys
from importlib import resources
from pathlib import Path

from google.api import annotations_pb2
from grpc_tools import protoc  # type: ignore[import-untyped]

PROTOS = Path(__file__).parent
PLUGINS = ("mypy", "mypy_grpc")


def generate(target: Path) -> None:
    """Writes modules, stubs and descriptors below `target`; raises SystemExit when protoc refuses."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    contract = target / "octavo" / "v1" / "contract.binpb"
    contract.parent.mkdir(parents=True, exist_ok=True)
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{resources.files('grpc_tools') / '_proto'}",
            f"-I{Path(annotations_pb2.__file__).parents[2]}",
            # The plugins live beside the interpreter, which need not be on the PATH.
            *(f"--plugin=protoc-gen-{name}={Path(sys.executable).parent / f'protoc-gen-{name}'}" for name in PLUGINS),
            *(f"--{plugin}_out={target}" for plugin in ("python", "grpc_python", *PLUGINS)),
            f"--descriptor_set_out={contract}",
            "--include_imports",
            "--include_source_info",
            *sources,
        ]
    )
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if sys.argv[1:] else PROTOS.parent)
