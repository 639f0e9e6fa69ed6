"""What `torch.compile` keeps of the programs it has compiled: code, guards, graphs, constants.

Dynamo hangs compiled code on code objects, where only C sees it (torch/csrc/dynamo/extra_state.cpp), and
what that code calls into the namespace of the module that was compiled, which a closure does not enter.
"""

import sys
from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any


def captured() -> Iterator[object]:
    """The guards of all compiled code, and the globals that were made for it."""
    dynamo: Any = sys.modules.get("torch._dynamo.convert_frame")
    if dynamo is None:
        return
    names: set[str] = set()
    for code in _compiled_codes(dynamo):
        for entry in _cache_entries(code):
            # Before torch 2.6 the guards are a function.
            yield entry.guard_manager if hasattr(entry, "guard_manager") else entry.check_fn
            names |= {*entry.code.co_names} - {*code.co_names}
    if names:
        yield from _globals_named(names)


def _compiled_codes(dynamo: Any) -> list[CodeType]:
    references = [*dynamo.input_codes.seen, *dynamo.output_codes.seen]
    return [code for code in (reference() for reference in references) if code is not None]


def _cache_entries(code: CodeType) -> list[Any]:
    from torch._C import _dynamo

    # An attribute: torch 2.4 has it and no module of that name to import.
    entries: list[Any] = _dynamo.eval_frame._debug_get_cache_entry_list(code)
    return entries


def _globals_named(names: set[str]) -> Iterator[object]:
    for module in list(sys.modules.values()):
        if issubclass(type(module), ModuleType):
            namespace = ModuleType.__getattribute__(module, "__dict__")
            yield from [namespace[name] for name in names & namespace.keys()]
