"""`python -m octavo.cli.tether PARENT MODULE [ARGUMENT …]`: runs a module that does not outlive its parent.

A parent that is killed cannot stop its children; on Linux the kernel then sends them SIGTERM (prctl(2),
PR_SET_PDEATHSIG). Elsewhere the module just runs.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, module: str, arguments: list[str]) -> None:
    """Runs the module as `__main__` with these arguments."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            raise SystemExit("the process that wanted this one is gone")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
