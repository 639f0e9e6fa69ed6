"""Owners in C and C++ of objects with external references, as far as they can be found out."""

import collections
import functools
import signal
import types
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, cast

import torch
from torch._C import DisableTorchFunction, TensorBase

from fastpurge import _core
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.object_types import is_a
from fastpurge.torch_facts import cpp_callbacks, script_modules
from fastpurge.torch_facts.autograd import BackwardUnderWayError, graph_of
from fastpurge.torch_facts.tensors import has_cpp_owner, may_have_numpy_array

TORCHSCRIPT = "torchscript"
HOOKS = "autograd hooks"
ARRAYS = "numpy"

_requires_grad = cast(Any, TensorBase.requires_grad).__get__
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
_AMONG_HOOKS = "autograd references it, among the hooks that a backward will call"
_CALLED_AT_A_SIGNAL = "the interpreter references it as a signal handler"
_TO_BE_CALLED = "C or C++ code references it as a callback, such as a hook of saved tensors"


def names_of(objects: list[Any], among: Iterable[Any]) -> list[str | None]:
    """For each object the name of its owner in C or C++; ``None`` if that is not known.

    If any of the objects, or any tensor in ``among``, has a graph, this looks for hooks, which takes at least
    one walk over the heap.

    Args:
        objects: objects with external references.
        among: other objects, whose graphs may own hooks. No other thread may be computing with them.

    """
    graphs = _with_graphs(among)
    hooks = list(_hooks(graphs)) if graphs or _with_graphs(objects) else []
    in_scripts = _core.IdSet(_tensors_of_scripts() if any(map(has_cpp_owner, objects)) else ())
    hooked = _core.closure(tuple(hooks), libraries=libraries()) if hooks else _core.IdSet()

    def name_of(obj: Any) -> str | None:
        if obj in in_scripts:
            return TORCHSCRIPT
        if obj in hooked:
            return HOOKS
        return ARRAYS if is_a(obj, torch.Tensor) and may_have_numpy_array(obj) else None

    return [name_of(one) for one in objects]


def reason_for(obj: object) -> str | None:
    """Why C or C++ code references a callable; ``None`` if the object is no such callable."""
    if type(obj) is not collections.OrderedDict and not is_a(obj, *_FUNCTIONS):
        return None
    if any(signal.getsignal(number) is obj for number in signal.valid_signals()):
        return _CALLED_AT_A_SIGNAL
    if not any(one is obj for one in cpp_callbacks.callbacks()):
        return None
    return _AMONG_HOOKS if type(obj) is collections.OrderedDict else _TO_BE_CALLED


def _with_graphs(objects: Iterable[Any]) -> list[torch.Tensor]:
    tensors = (one for one in objects if is_a(one, torch.Tensor) and not is_a(one, torch.nn.Parameter))
    with DisableTorchFunction():
        return [one for one in tensors if _requires_grad(one)]


def _hooks(graphs: list[torch.Tensor]) -> Iterator[object]:
    """The dicts of hooks of autograd (torch/csrc/autograd/python_hook.h), and what hooks have packed."""
    with suppress(BackwardUnderWayError), DisableTorchFunction():
        yield from (one for one in graph_of(graphs) if not is_a(one, torch.Tensor))
    # Most often there are none, and then this costs one walk over the heap.
    if any(map(_may_be_hooks, _core.scan((collections.OrderedDict,)))):
        yield from filter(_may_be_hooks, cpp_callbacks.callbacks())


def _may_be_hooks(obj: object) -> bool:
    """Whether an object is a dict with keys such as `torch.utils.hooks.RemovableHandle` makes."""
    return type(obj) is collections.OrderedDict and type(next(iter(obj), None)) is int


def _tensors_of_scripts() -> Iterator[object]:
    for script in (*script_modules.functions(), *_core.scan(script_modules.TYPES[:1])):
        for tensor, _ in script_modules.labelled_tensors(script):
            yield tensor
