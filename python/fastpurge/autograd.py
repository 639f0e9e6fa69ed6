"""What an autograd graph holds: nodes, the leaves it feeds, what it saved for backward, contexts.

All of it is owned by C++ and out of the collector's sight (`THPVariable_traverse` in
torch/csrc/autograd/python_variable.cpp shows a graph only to its sole owner).
"""

from collections.abc import Hashable, Iterable, Iterator
from functools import cache
from typing import Any, cast

import torch
from torch._C import TensorBase

from fastpurge._core import IdSet

_grad_fn = cast(Any, TensorBase.grad_fn).__get__


def graph_of(tensors: Iterable[torch.Tensor]) -> Iterator[object]:
    """Everything that the graphs of some tensors hold: nodes, leaves, and what was saved.

    No hook is run: of what was packed by `torch.autograd.graph.saved_tensors_hooks` the packed object
    is given, not the tensor, and the hook that will unpack it.
    """
    met = IdSet()
    # The nodes stay in this list, so that no identity in `met` can be used again.
    nodes = [node for tensor in tensors if (node := _node_of(tensor)) is not None]
    for node in nodes:
        if node in met:
            continue
        met.add(node)
        yield node  # of a custom function this is its context, with all its attributes
        yield from _held_by(node)
        nodes += [following for following, _ in node.next_functions if following is not None]


def _node_of(tensor: torch.Tensor) -> Any:
    try:
        return _grad_fn(tensor)
    except RuntimeError:  # a view whose base was written to in a way that autograd cannot follow
        return None


def _held_by(node: Any) -> Iterator[object]:
    if (leaf := getattr(node, "variable", None)) is not None:
        yield leaf
    for name in _saved_names(cast(Hashable, type(node))):
        try:
            saved = getattr(node, name)
        except RuntimeError:  # freed by a backward
            continue
        for one in saved if isinstance(saved, tuple | list) else (saved,):
            try:
                packed = getattr(one, "data", None)
            except RuntimeError:
                continue
            if packed is not None:
                yield packed
            if (unpack := getattr(one, "unpack_hook", None)) is not None:
                yield unpack


@cache
def _saved_names(node_type: Hashable) -> tuple[str, ...]:
    return tuple(name for name in dir(node_type) if name.startswith("_raw_saved_"))
