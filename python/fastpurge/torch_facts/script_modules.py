"""What TorchScript holds in C++: parameters and buffers of modules, and constants of what was compiled."""

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
    """What a script holds (torch/csrc/jit/api/object.h), with what code calls it there.

    Nothing, of a script that another thread is just making, or that another version makes otherwise.
    """
    read = _of_function if is_a(script, ScriptFunction) else _of_module
    try:
        return [*read(script)]
    except Exception:  # noqa: BLE001 - whatever a script raises that is not whole
        return []


def parameters_and_buffers(module: Any) -> list[torch.Tensor]:
    """What goes with a module: its constants do not, torch keeps what it was compiled to."""
    try:
        return [*torch.nn.Module.parameters(module), *torch.nn.Module.buffers(module)]
    except Exception:  # noqa: BLE001 - whatever a script raises that is not whole
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
    """The functions that were compiled, alive or not: torch keeps what they were compiled to."""
    try:
        return [*imported_modules.attribute("torch.jit._state", "_python_cu").get_functions()]
    except Exception:  # noqa: BLE001 - a version that keeps them elsewhere
        return []


def _constants(graph: Any) -> Iterator[tuple[object, str]]:
    for node in graph.findAllNodes("prim::Constant", True):
        kind = node.kindOf("value") if node.hasAttribute("value") else None
        if kind in ("t", "ts"):
            tensors = [node.t("value")] if kind == "t" else node.ts("value")
            for tensor in tensors:
                yield tensor, " (a constant of a script)"
