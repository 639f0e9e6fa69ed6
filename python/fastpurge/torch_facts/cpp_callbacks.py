"""Python callables that C and C++ code will call."""

import collections
import functools
import types
from typing import Any

from fastpurge import _core
from fastpurge.python_facts.running_code import EXECUTING


def callbacks() -> list[Any]:
    """The callables that C and C++ code will call: hooks of graphs, and hooks that unpack saved tensors.

    Autograd owns these in C++ (torch/csrc/autograd/python_hook.h), and nothing in Python can read them. The
    dicts of hooks are included.
    """
    return _core.c_callbacks(
        function_type=types.FunctionType,
        method_type=types.MethodType,
        other_types=(functools.partial, collections.OrderedDict),
        generator_types=EXECUTING,
    )
