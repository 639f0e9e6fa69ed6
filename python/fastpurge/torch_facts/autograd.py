"""Autograd graphs: their nodes, leaves, contexts, and the objects that they saved for backward.

C++ owns all of these, and the garbage collector cannot see them (`THPVariable_traverse` in
torch/csrc/autograd/python_variable.cpp visits a graph only if the tensor is its sole owner).
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache
from types import GetSetDescriptorType
from typing import Any, cast

import torch
from torch._C import TensorBase
from torch.autograd.graph import _engine_run_backward

from fastpurge._core import IdSet, read_unless_inside

_grad_fn = cast(Any, TensorBase.grad_fn).__get__
_grad = cast(Any, TensorBase.grad).__get__
_is_leaf = cast(Any, TensorBase.is_leaf).__get__
_retains_grad = cast(Any, TensorBase.retains_grad).__get__

_Read = tuple[Callable[[Any], Any], Any]


class BackwardUnderWayError(Exception):
    """Another thread is inside a backward, so the saved tensors of graphs cannot be read."""


def graph_of(tensors: Iterable[torch.Tensor]) -> Iterator[object]:
    """Everything in the graphs of these tensors: nodes, leaves, then saved objects.

    Runs no hook: where `torch.autograd.graph.saved_tensors_hooks` packed a tensor, this gives the packed
    object and the hook that unpacks it.

    Raises:
        BackwardUnderWayError: something was saved, and another thread is inside a backward.

    """
    seen = IdSet()
    # This list keeps the nodes alive, so that no id in `seen` is reused.
    nodes = [node for tensor in tensors if (node := _node_of(tensor)) is not None]
    reads: list[_Read] = []
    for node in nodes:
        if node in seen:
            continue
        seen.add(node)
        yield node  # of a custom function this is its context, with all its attributes
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        reads += ((get, node) for get in _saved_by(cast(Hashable, type(node))))
        nodes += [following for following, _ in node.next_functions if following is not None]
    saved = _read(reads, then=_CONTENTS)
    if saved is None:
        raise BackwardUnderWayError
    yield from saved


def gradients_of(tensors: Iterable[torch.Tensor]) -> list[object] | None:
    """The gradients of tensors; ``None`` if any may have one while another thread is inside a backward."""
    return _read([(_grad, one) for one in tensors if _may_have_gradient(one)])


def labelled_references(
    tensors: list[torch.Tensor], graphs: Iterable[torch.Tensor]
) -> Iterator[tuple[object, object, str]]:
    """References in C++: gradients, and edges of graphs. Each as owner, referent and path expression.

    Args:
        tensors: gives the gradients of these.
        graphs: gives the graphs of these tensors. What cannot be read, because another thread is inside a
            backward, is left out.

    """
    for tensor in tensors:
        for gradient in gradients_of([tensor]) or ():
            yield tensor, gradient, ".grad"
    nodes: list[Any] = []
    for tensor in graphs:
        if (node := _node_of(tensor)) is not None:
            yield tensor, node, ".grad_fn"
            nodes.append(node)
    seen = IdSet()
    for node in nodes:
        if node not in seen:
            seen.add(node)
            yield from _references_of_node(node)
            nodes += [following for following, _ in node.next_functions if following is not None]


def _references_of_node(node: Any) -> Iterator[tuple[object, object, str]]:
    if (leaf := getattr(node, "variable", None)) is not None:
        yield node, leaf, ".variable"
    reads: list[_Read] = [(get, node) for get in _saved_by(cast(Hashable, type(node)))]
    for saved in _read(reads, then=_CONTENTS) or ():
        yield node, saved, " (saved for backward)"
    for at, (following, _) in enumerate(node.next_functions):
        if following is not None:
            yield node, following, f".next_functions[{at}][0]"


def _may_have_gradient(tensor: torch.Tensor) -> bool:
    # Other tensors have none, and torch warns if it is read.
    try:
        return bool(_is_leaf(tensor) or _retains_grad(tensor))
    except RuntimeError:  # a view whose base was written to in a way that autograd cannot follow
        return False


def _read(reads: list[_Read], then: list[Callable[[Any], Any]] | None = None) -> list[object] | None:
    """Read attributes that a backward changes without the GIL; ``None`` if a thread is inside a backward.

    To read a saved tensor that a backward has freed raises, and gives nothing.
    """
    if not reads:
        return []
    return read_unless_inside(reads, unless_inside=_engine_run_backward.__code__, then=then)


def _node_of(tensor: torch.Tensor) -> Any:
    try:
        return _grad_fn(tensor)
    except RuntimeError:  # a view whose base was written to in a way that autograd cannot follow
        return None


@cache
def _saved_by(node_type: Hashable) -> list[Callable[[Any], Any]]:
    """The C getters of the saved tensors of a type of node."""
    names = (name for name in dir(node_type) if name.startswith("_raw_saved_"))
    found = (getattr(node_type, name) for name in names)
    return [one.__get__ for one in found if isinstance(one, GetSetDescriptorType)]


# Getters of a saved tensor: its data (or what that was packed into), and the hook that unpacks it, if torch
# has it.
_CONTENTS: list[Callable[[Any], Any]] = [
    cast(Any, contents).fget
    for name in ("data", "unpack_hook")
    if (contents := getattr(torch._C._autograd.SavedTensor, name, None)) is not None
]
