"""What `torch.compile` keeps for compiled functions: code, guards, graphs, constants.

Dynamo attaches compiled code to code objects in C (torch/csrc/dynamo/extra_state.cpp). What that code calls
is in the namespace of the module that was compiled, which a closure does not enter.
"""

import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, cast

import torch

from fastpurge import _core
from fastpurge.python_facts import imported_modules
from fastpurge.python_facts.library_folders import libraries

_eval_frame: Any = cast(Any, torch._C)._dynamo.eval_frame
_entry_type: Any = getattr(_eval_frame, "_CacheEntry", None)
# Getters of the code and the guards of an entry. An entry has no code if it was invalidated, because an
# object that it was compiled for was deallocated. Before torch 2.6 the guards are a function.
_CONTENTS: list[Callable[[Any], Any]] = [
    found.fget
    for names in (("code",), ("guard_manager", "check_fn"))
    if (found := next((getattr(_entry_type, name) for name in names if hasattr(_entry_type, name)), None))
]
# The prefixes of globals that dynamo makes: for compiled functions, and for what comes after a graph break.
_MADE_BY_DYNAMO = ("__compiled_fn", "__resume_at")


def captured() -> Iterator[object]:
    """The guards of all compiled code, and the globals that dynamo made for it.

    While a thread compiles, or if code cannot be read, this gives all globals that dynamo ever made, and all
    globals with the names that the code uses.
    """
    if imported_modules.attribute("torch._dynamo.convert_frame", "__name__") is None:
        return
    # Checked first: what is compiled now may be complete by the time the codes are read.
    all_made = _is_compiling()
    codes = _compiled_codes()
    names: set[str] = set()
    all_made |= codes is None
    for code in codes or ():
        contents = _contents_of(code)
        if contents is None:
            all_made = True
            names |= {*code.co_names}
        for one in contents or ():
            if type(one) is CodeType:
                names |= {*one.co_names} - {*code.co_names}
            else:
                yield one
    yield from _globals(names, all_made=all_made)


def _compiled_codes() -> list[CodeType] | None:
    """The code objects that dynamo has seen; ``None`` if they cannot be read."""
    found: list[CodeType] = []
    for name in ("input_codes", "output_codes"):
        try:
            references = [*imported_modules.attribute("torch._dynamo.convert_frame", name).seen]
            found += [code for reference in references if (code := reference()) is not None]
        except Exception:  # noqa: BLE001 - being imported, or another version
            return None
    return found


def _contents_of(code: CodeType) -> list[object] | None:
    """The guards and the code of all entries of a code object; ``None`` if they cannot be read.

    Read in one call into C, because another thread may remove an entry meanwhile.
    """
    try:
        code_of, guards_of = _CONTENTS
        reads = [(_eval_frame._debug_get_cache_entry_list, code)]
        return _core.read_unless_inside(reads, then=[code_of, guards_of])
    except Exception:  # noqa: BLE001 - another version of torch
        return None


def _globals(names: set[str], *, all_made: bool) -> Iterator[object]:
    modules = imported_modules.modules()
    for namespace in map(imported_modules.namespace, modules.values()) if names else ():
        yield from [namespace.get(one) for one in names if one in namespace]
    if not all_made:
        return
    # `Guard.LIBRARY` covers the namespaces of libraries.
    for name in libraries().program_modules([*modules]):
        found = imported_modules.namespace(modules[name]).copy().items()
        yield from (value for key, value in found if type(key) is str and key.startswith(_MADE_BY_DYNAMO))


def _is_compiling() -> bool:
    """Whether a thread is compiling: the globals that it has made by now belong to no code yet."""
    try:
        # C calls this to have a frame compiled.
        code = imported_modules.attribute(
            "torch._dynamo.convert_frame", "CatchErrorsWrapper"
        ).__call__.__code__
        if _core.read_unless_inside([], unless_inside=code) is None:
            return True
    except Exception:  # noqa: BLE001 - being imported, or another version
        return True
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
