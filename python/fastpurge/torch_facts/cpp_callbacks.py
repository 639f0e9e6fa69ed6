"""What C code is to call."""

import collections
import functools
import types
from typing import Any

from fastpurge import _core
from fastpurge.python_facts.running_code import EXECUTING


def callbacks() -> list[Any]:
    """What C code is to call: hooks of a graph, and what turns back what they packed for backward.

    Autograd holds these in C++ (torch/csrc/autograd/python_hook.h) and shows them to nobody. A dict of
    hooks is one as well.
    """
    return _core.c_callbacks(
        function_type=types.FunctionType,
        method_type=types.MethodType,
        other_types=(functools.partial, collections.OrderedDict),
        generator_types=EXECUTING,
    )
