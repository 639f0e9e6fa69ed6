"""Run a check on the inputs of atheris, which mutates inputs that reach new code of the package.

    python -m tests.fuzz.run arguments -max_total_time=60

The first argument names the check, a module beside this one; the others are libFuzzer's. Run by `make fuzz`.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module

import atheris
import torch

# The package imports these on demand.
IMPORTED_LATE = ("engine.sweep", "inspection.census", "inspection.why", "exceptions.let_go")


def main() -> None:
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["fastpurge", "tests.random_programs"]):
        for module in IMPORTED_LATE:
            import_module(f"fastpurge.{module}")
        check = import_module(f"tests.fuzz.{name}").check
    torch.set_num_threads(1)
    atheris.Setup(sys.argv, check)
    # `gc.freeze` hides existing objects from the collector: a sweep takes milliseconds.
    gc.collect()
    gc.freeze()
    atheris.Fuzz()


if __name__ == "__main__":
    main()
