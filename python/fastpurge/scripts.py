"""What TorchScript holds in C++: parameters and buffers of modules, and constants of what was compiled."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch._C import ScriptFunction
from torch.jit import _recursive
from torch.jit._script import RecursiveScriptModule
from torch.jit._state import _python_cu

from fastpurge.tensors import attributes_of, is_a

TYPES: tuple[type, ...] = (RecursiveScriptModule, ScriptFunction)
_graph = cast(Any, ScriptFunction).graph.fget


def held_by(script: Any) -> Iterator[tuple[object, str]]:
    """What a script holds (torch/csrc/jit/api/object.h), with what code calls it there."""
    if is_a(script, ScriptFunction):
        yield from _constants(_graph(script))
        return
    for tensor in (*torch.nn.Module.parameters(script), *torch.nn.Module.buffers(script)):
        yield tensor, " (in a script)"
    compiled: Any = attributes_of(script).get("_c")
    for name in compiled._method_names() if compiled is not None else ():
        yield from _constants(compiled._get_method(name).graph)


def functions() -> list[Any]:
    """The functions that were compiled, alive or not: torch keeps what they were compiled to."""
    compiled: list[Any] = cast(Any, _python_cu).get_functions()
    return compiled


def may_be_modules() -> bool:
    """Whether any module was compiled or loaded."""
    return bool(_recursive.concrete_type_store.type_store)


def _constants(graph: Any) -> Iterator[tuple[object, str]]:
    for node in graph.findAllNodes("prim::Constant", True):
        kind = node.kindOf("value") if node.hasAttribute("value") else None
        if kind in ("t", "ts"):
            tensors = [node.t("value")] if kind == "t" else node.ts("value")
            for tensor in tensors:
                yield tensor, " (a constant of a script)"
