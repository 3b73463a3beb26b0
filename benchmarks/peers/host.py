"""A contestant's process: `python -P host.py WORKER.py` reads orders as JSON lines and answers each with one.

    {"load": {"directory": …, "precision": "fp32", "threads": 2, "sequences": 32, "context": 1024, "device": "cpu"}}
        -> {"seconds": …, "version": "…"}
    {"generate": {"prompts": [[1, 2], …], "new": 64}}
        -> {"seconds": …}

A worker file offers `version() -> str` and `Model(directory, **order)` with `generate(prompts, new)`, which answers the
new tokens of each prompt. Runs under any Python that a contestant needs: the standard library alone.
"""

import ctypes
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any


def main() -> None:
    """Answers until standard input ends."""
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG, SIGKILL: a stopped process does not notice that the one which stopped it is gone.
        ctypes.CDLL(None).prctl(1, 9)
    # Libraries print as they please: what they call standard output goes to the log, answers have a way of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = imported(Path(sys.argv[1]))
    model: Any = None
    for line in sys.stdin:
        ((kind, order),) = json.loads(line).items()
        try:
            start = perf_counter()
            if kind == "load":
                model = worker.Model(Path(order.pop("directory")), **order)
                answer = {"seconds": perf_counter() - start, "version": worker.version()}
            else:
                completions = model.generate(order["prompts"], order["new"])
                answer = {"seconds": perf_counter() - start}
                check(completions, order)
        except BaseException as error:  # whatever a library raises is its answer, and a row of the table
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(answer), file=answers)


def check(completions: list[Any], order: dict[str, Any]) -> None:
    """A contestant that stops early would win: raises ValueError."""
    lengths = {len(completion) for completion in completions}
    if len(completions) != len(order["prompts"]) or lengths != {order["new"]}:
        raise ValueError(f"{len(completions)} completions of {sorted(lengths)} tokens instead of {order['new']}")


def imported(path: Path) -> ModuleType:
    """The worker file as a module."""
    spec = importlib.util.spec_from_file_location("worker", path)
    if not (spec and spec.loader):
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules["worker"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
