"""Who holds, in C or C++, what no object of the heap accounts for: as far as it can be found out."""

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
_AMONG_HOOKS = "autograd holds it, among the hooks that a backward will call"
_CALLED_AT_A_SIGNAL = "the interpreter holds it, and calls it at a signal"
_TO_BE_CALLED = "C or C++ code holds it, and is to call it: as a hook of saved tensors, or another callback"


def names_of(objects: list[Any], among: Iterable[Any]) -> list[str | None]:
    """For each object who in C or C++ holds it, or what leads to it; ``None`` if that is not known.

    If there are graphs, of these or ``among`` what else there is, hooks are looked for, which takes a walk
    over the heap, or more. On what is among that no other thread may compute.
    """
    graphs = _with_graphs(among)
    hooks = list(_hooks(graphs)) if graphs or _with_graphs(objects) else []
    in_scripts = _core.IdSet(_held_by_scripts() if any(map(has_cpp_owner, objects)) else ())
    hooked = _core.closure(tuple(hooks), libraries=libraries()) if hooks else _core.IdSet()

    def name_of(obj: Any) -> str | None:
        if obj in in_scripts:
            return TORCHSCRIPT
        if obj in hooked:
            return HOOKS
        return ARRAYS if is_a(obj, torch.Tensor) and may_have_numpy_array(obj) else None

    return [name_of(one) for one in objects]


def reason_for(obj: object) -> str | None:
    """Who holds something that C or C++ code is to call; ``None`` if it is not that."""
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
    """The dicts in which autograd holds hooks (torch/csrc/autograd/python_hook.h), and what hooks packed."""
    with suppress(BackwardUnderWayError), DisableTorchFunction():
        yield from (one for one in graph_of(graphs) if not is_a(one, torch.Tensor))
    # By far most often there are none, and then it takes one walk to find that out.
    if any(map(_may_be_hooks, _core.scan((collections.OrderedDict,)))):
        yield from filter(_may_be_hooks, cpp_callbacks.callbacks())


def _may_be_hooks(obj: object) -> bool:
    """Whether something has the keys that `torch.utils.hooks.RemovableHandle` gives."""
    return type(obj) is collections.OrderedDict and type(next(iter(obj), None)) is int


def _held_by_scripts() -> Iterator[object]:
    for script in (*script_modules.functions(), *_core.scan(script_modules.TYPES[:1])):
        for tensor, _ in script_modules.labelled_tensors(script):
            yield tensor
