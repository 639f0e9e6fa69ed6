"""`import fastpurge` is fast, and the public names are those of the documentation."""

from __future__ import annotations

import os
import subprocess
import sys

import fastpurge
import pytest


def test_import_imports_nothing_that_takes_time() -> None:
    others = {"torch", "numpy", "rich", "psutil", "IPython", "matplotlib"}
    program = f"import sys, fastpurge; print({others} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_public_name_is_there() -> None:
    for name in fastpurge.__all__:
        assert getattr(fastpurge, name).__doc__
    assert set(fastpurge.__all__) <= set(dir(fastpurge))


def test_functions_are_not_shadowed_by_modules() -> None:
    # Importing a submodule sets its name on the package; no public name may be a module's.
    program = """
import importlib, pkgutil, fastpurge
for module in pkgutil.walk_packages(fastpurge.__path__, "fastpurge."):
    if not module.name.startswith(("fastpurge.__main__", "fastpurge.comfy")):
        importlib.import_module(module.name)
print([name for name in fastpurge.__all__ if not callable(getattr(fastpurge, name))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_call_during_the_import_of_the_package_is_a_clear_error() -> None:
    program = """
import sys
class Finder:
    def find_spec(self, name, *others):
        if name == "fastpurge.engine.survey":
            try:
                fastpurge.sweep(keep=())
            except RuntimeError as error:
                print(error)
sys.meta_path.insert(0, Finder())
import fastpurge
print(fastpurge.sweep(keep=()).skipped)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    printed, swept = done.stdout.splitlines()
    assert printed.startswith("fastpurge is being imported")
    assert swept == "()"


FORKED_DURING_AN_IMPORT = """
import os, sys, threading, torch, fastpurge
from importlib.machinery import SourceFileLoader
begun, end = threading.Event(), threading.Event()
execute = SourceFileLoader.exec_module
def execute_slowly(self, module):
    if module.__name__ == "fastpurge.engine.survey" and not begun.is_set():
        begun.set()
        end.wait(float(sys.argv[1]))
    execute(self, module)
SourceFileLoader.exec_module = execute_slowly
fastpurge._SECONDS_TO_WAIT = float(sys.argv[2])
thread = threading.Thread(target=lambda: fastpurge.sweep(keep=()))
thread.start()
begun.wait()
if os.fork() == 0:
    try:
        fastpurge.sweep(keep=())
        print("swept", flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
end.set()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("takes", "waits", "printed"), [(1, 30, "swept"), (60, 0.1, "forked while another thread was importing")]
)
def test_a_child_forked_during_an_import_sweeps_or_raises(takes: float, waits: float, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED_DURING_AN_IMPORT, str(takes), str(waits)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert printed in done.stdout


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        fastpurge.no_such_thing  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert fastpurge.__version__ == version("torch-fastpurge")


def test_a_call_while_the_interpreter_shuts_down_is_a_clear_error() -> None:
    program = """
import fastpurge
fastpurge.sweep(keep=())
class AtTheEnd:
    def __del__(self):
        for name in ("plan", "sweep"):
            try:
                getattr(fastpurge, name)(keep=())
            except RuntimeError as error:
                print(error, flush=True)
at_the_end = AtTheEnd()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("the interpreter is shutting down") == 2, done.stderr
