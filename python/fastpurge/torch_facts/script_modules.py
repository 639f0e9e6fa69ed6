"""TorchScript: the tensors that its modules and functions own in C++."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch._C import ScriptFunction
from torch.jit._script import RecursiveScriptModule

from fastpurge.python_facts import imported_modules
from fastpurge.python_facts.object_types import is_a
from fastpurge.torch_facts.tensors import module_dict

TYPES: tuple[type, ...] = (RecursiveScriptModule, ScriptFunction)
_graph = cast(Any, ScriptFunction).graph.fget


def labelled_tensors(script: Any) -> list[tuple[object, str]]:
    """The tensors that a script owns (torch/csrc/jit/api/object.h), each with a path expression.

    Empty for a script that another thread is still building, and if this version of torch differs.
    """
    read = _of_function if is_a(script, ScriptFunction) else _of_module
    try:
        return [*read(script)]
    except Exception:  # noqa: BLE001 - an incomplete script may raise anything
        return []


def parameters_and_buffers(module: Any) -> list[torch.Tensor]:
    """The tensors that are freed with a module. Its constants are not: torch caches the compiled code."""
    try:
        return [*torch.nn.Module.parameters(module), *torch.nn.Module.buffers(module)]
    except Exception:  # noqa: BLE001 - an incomplete script may raise anything
        return []


def _of_function(function: Any) -> Iterator[tuple[object, str]]:
    return _constants(_graph(function))


def _of_module(module: Any) -> Iterator[tuple[object, str]]:
    for tensor in parameters_and_buffers(module):
        yield tensor, " (in a script)"
    compiled: Any = module_dict(module).get("_c")
    for name in compiled._method_names() if compiled is not None else ():
        yield from _constants(compiled._get_method(name).graph)


def functions() -> list[Any]:
    """All functions that were ever compiled: torch caches them."""
    try:
        return [*imported_modules.attribute("torch.jit._state", "_python_cu").get_functions()]
    except Exception:  # noqa: BLE001 - another version of torch
        return []


def _constants(graph: Any) -> Iterator[tuple[object, str]]:
    for node in graph.findAllNodes("prim::Constant", True):
        kind = node.kindOf("value") if node.hasAttribute("value") else None
        if kind in ("t", "ts"):
            tensors = [node.t("value")] if kind == "t" else node.ts("value")
            for tensor in tensors:
                yield tensor, " (a constant of a script)"
