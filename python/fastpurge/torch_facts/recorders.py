"""Suspends tracing, modes and compilation in this thread while fastpurge reads torch.

`torch.jit.trace` records every size that is read (`THPSize_New` in torch/csrc/Size.cpp), and aborts the
process if the tensor is not part of the trace. Modes and transforms intercept every operation. The profiler
is not
suspended: it changes nothing, and fastpurge's operations did take that time.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar, cast

import torch
from torch import overrides
from torch._ops import _len_torch_dispatch_stack_pre_dispatch, _pop_mode_from_pre_dispatch
from torch.utils import _python_dispatch

# In C, so it exists although dynamo is not imported.
_eval_frame: Any = cast(Any, torch._C)._dynamo.eval_frame


def _can_compile() -> bool:
    """Whether this torch compiles on this Python."""
    try:
        _eval_frame.set_eval_frame(_eval_frame.set_eval_frame(None))
    except Exception:  # noqa: BLE001 - a newer Python than it knows
        return False
    return True


_CAN_COMPILE = _can_compile()

_Function = TypeVar("_Function", bound=Callable[..., Any])


def never_compiled(function: _Function) -> _Function:
    """Make `torch.compile` skip a function, as `torch.compiler.disable` does, but without importing dynamo.

    Depending on the version of torch this may not include the functions that it calls. For these there is
    `Unrecorded`.
    """
    code = function.__code__
    if not _CAN_COMPILE:
        return function
    if hasattr(_eval_frame, "set_code_exec_strategy"):
        skip = _eval_frame._FrameAction.SKIP
        _eval_frame.set_code_exec_strategy(code, _eval_frame._FrameExecStrategy(skip, skip))
    else:
        _eval_frame.skip_code(code)
    cast(Any, function)._torchdynamo_disable = True  # makes dynamo break the caller's graph at the call
    return function


def _take_pre_dispatch_modes() -> list[Any]:
    return [_pop_mode_from_pre_dispatch() for _ in range(_len_torch_dispatch_stack_pre_dispatch())]


def _take_dispatch_modes() -> list[Any]:
    # Read all modes before popping one: torch 2.4 returns a borrowed reference to a mode that nobody else
    # owns.
    modes = _python_dispatch._get_current_dispatch_mode_stack()
    for _ in modes:
        _python_dispatch._pop_mode()
    return modes[::-1]


def _take_function_modes() -> list[Any]:
    modes: list[Any] = overrides._get_current_function_mode_stack()
    for _ in modes:
        overrides._pop_mode()
    return modes[::-1]


# For each stack of modes: how to pop all, the innermost first, and how to push one back.
_MODES: list[tuple[Callable[[], list[Any]], Callable[[Any], None]]] = [
    (_take_pre_dispatch_modes, _python_dispatch._push_mode),
    (_take_dispatch_modes, _python_dispatch._push_mode),
    (_take_function_modes, overrides._push_mode),
]


class Unrecorded:
    """A context in which nothing records or intercepts the operations of this thread.

    Subclasses of tensors work as usual, because a finalizer that runs meanwhile may compute with them.
    """

    __slots__ = ("_resume",)

    @never_compiled
    def __enter__(self) -> None:
        with ExitStack() as resume:
            if _CAN_COMPILE:
                resume.callback(_eval_frame.set_eval_frame, _eval_frame.set_eval_frame(None))
            if (trace := torch._C._get_tracing_state()) is not None:
                resume.callback(_set_tracing_state, trace)
                _set_tracing_state(None)
            modes = _suspended_here()
            for take, push in _MODES:
                for mode in take():
                    modes.append(mode)
                    resume.callback(_put_back, push, modes)
            self._resume = resume.pop_all()

    @never_compiled
    def __exit__(self, *_: object) -> None:
        self._resume.close()


def _put_back(push: Callable[[Any], None], modes: list[Any]) -> None:
    push(modes.pop())


_set_tracing_state: Callable[[Any], None] = cast(Any, torch._C)._set_tracing_state
_here = threading.local()


def _suspended_here() -> list[Any]:
    modes: list[Any] = vars(_here).setdefault("modes", [])
    return modes


def suspended_modes() -> tuple[Any, ...]:
    """The modes of this thread that are suspended now. They are in use: the thread continues with them."""
    return (*_suspended_here(),)
