"""`import fastpurge` costs nothing, and the public names are those of the documentation."""

from __future__ import annotations

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
for module in pkgutil.iter_modules(fastpurge.__path__):
    if module.name not in ("__main__",):
        importlib.import_module(f"fastpurge.{module.name}")
print([name for name in fastpurge.__all__ if not callable(getattr(fastpurge, name))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        fastpurge.no_such_thing  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert fastpurge.__version__ == version("torch-fastpurge")
