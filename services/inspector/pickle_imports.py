"""What a pickle of tensors may import, and which imports exist to run something.

Exact pairs of module and name only: whole modules have been the way around every such list (modelscan#330).
"""

from __future__ import annotations

from typing import Final

from octavo.v1 import inspector_pb2 as pb

# What torch.save and numpy.save write for tensors and arrays: exact names, never whole modules.
_STORAGES: Final = (
    *("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"),
    *("ComplexFloat", "ComplexDouble", "Float8_e4m3fn", "Float8_e5m2", "QInt8", "QUInt8", "QInt32"),
)
ALLOWED: Final = frozenset(
    {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.storage", "UntypedStorage"),
        ("torch.storage", "TypedStorage"),
        ("torch", "Size"),
        ("torch", "device"),
        *(("torch", f"{name}Storage") for name in _STORAGES),
        ("torch", "float32"),
        ("torch", "float16"),
        ("torch", "bfloat16"),
        ("torch", "int64"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        ("_codecs", "encode"),
    }
)
# Modules that exist to run, load or reach something. They only choose the word: what is not allowed is never clean.
_EXECUTING: Final = frozenset(
    {
        *("os", "posix", "nt", "subprocess", "builtins", "__builtin__", "sys", "runpy", "importlib", "pty", "socket"),
        *("shutil", "ctypes", "pickle", "_pickle", "marshal", "code", "codeop", "commands", "webbrowser", "asyncio"),
        *("multiprocessing", "operator", "functools", "types", "pkgutil", "pydoc", "timeit", "cProfile", "profile"),
        *("bdb", "pdb", "trace", "platform", "uuid", "imaplib", "smtplib", "ftplib", "http", "urllib", "ssl", "io"),
        *("_io", "logging", "distutils", "idlelib", "ensurepip", "pip", "venv", "_osx_support", "_aix_support"),
        *("signal", "threading", "_thread", "tempfile", "pathlib", "zipimport", "site", "atexit", "inspect", "gc"),
    }
)


# Builtins that only hold values; a module saved whole has some, and is refused for its classes anyway.
_PLAIN_BUILTINS: Final = frozenset(
    {"set", "frozenset", "slice", "complex", "bytearray", "range", "list", "dict", "tuple", "int", "float", "str"}
)


def is_executing(item: pb.PickleImport) -> bool:
    """Whether an import is of a module that exists to run, load or reach something."""
    package = item.module.partition(".")[0]
    if package in ("builtins", "__builtin__"):
        return item.symbol not in _PLAIN_BUILTINS
    return not item.is_allowed and package in _EXECUTING
