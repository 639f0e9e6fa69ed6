"""With-blocks that restore saved objects when they exit, and decorators made from them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn.utils import parametrize, stateless

from .owner import Body, OwnerTable, ProgramObject, Take, complete, copy_of

OWNERS = OwnerTable()


@contextlib.contextmanager
def _emptied(own: ProgramObject) -> Iterator[None]:
    saved, own.owned = own.owned, []
    try:
        yield
    finally:
        own.owned = saved


@contextlib.asynccontextmanager
async def _emptied_async(own: ProgramObject) -> AsyncIterator[None]:
    with _emptied(own):
        yield


@contextlib.contextmanager
def _zeroed(module: torch.nn.Module) -> Iterator[None]:
    saved = {name: one.clone() for name, one in module.state_dict().items()}
    module.load_state_dict({name: torch.zeros_like(one) for name, one in saved.items()})
    try:
        yield
    finally:
        module.load_state_dict(saved)


class _Emptied:
    """A context manager class that stores and restores objects, as for averaged weights."""

    def __init__(self, own: ProgramObject) -> None:
        self.own = own
        self.saved: list[Any] = []

    def __enter__(self) -> None:
        self.saved, self.own.owned = self.own.owned, []

    def __exit__(self, *_: object) -> None:
        self.own.owned = self.saved

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


class _Returning:
    """Assigns its objects to another object when it is closed."""

    def __init__(self, own: ProgramObject, owned: list[Any]) -> None:
        self.own, self.owned = own, owned

    def close(self) -> None:
        self.own.owned = self.owned

    async def aclose(self) -> None:
        self.close()


def _module(buffers: list[Any]) -> Any:
    module = torch.nn.Module()
    # Not by `register_buffer`, which refuses non-leaves.
    module._buffers.update({f"of{at}": one for at, one in enumerate(buffers)})
    return module


@OWNERS("context manager")
def context_manager(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())
    with _emptied(own):
        body()
    return own.owned


@OWNERS("context manager that copies", accepts="tensors", owns="copies")
def context_manager_that_copies(take: Take, body: Body) -> list[Any]:
    module = _module(copy_of(take()))
    with _zeroed(module):
        body()
    return [*module.buffers()]


@OWNERS("context managers in each other")
def context_managers_in_each_other(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())

    @contextlib.contextmanager
    def outer() -> Iterator[None]:
        with _emptied(own):
            yield

    with contextlib.nullcontext(), outer():
        body()
    return own.owned


@OWNERS("decorator")
def decorator(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())
    _emptied(own)(body)()
    return own.owned


@OWNERS("exit stack")
def exit_stack(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())
    with contextlib.ExitStack() as stack:
        stack.enter_context(_emptied(own))
        body()
    return own.owned


@OWNERS("callback of an exit stack")
def callback_of_an_exit_stack(take: Take, body: Body) -> list[Any]:
    own = ProgramObject([])
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, own, "owned", take())
        body()
    return own.owned


@OWNERS("exit stack that is taken over")
def exit_stack_that_is_taken_over(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())
    with contextlib.ExitStack() as stack:
        stack.enter_context(_emptied(own))
        taken_over = stack.pop_all()
    body()
    taken_over.close()
    return own.owned


@OWNERS("closing")
def closing(take: Take, body: Body) -> list[Any]:
    own = ProgramObject([])
    with contextlib.closing(_Returning(own, take())):
        body()
    return own.owned


@OWNERS("null context")
def null_context(take: Take, body: Body) -> list[Any]:
    entered = contextlib.nullcontext(take())
    with entered:
        body()
    return entered.enter_result


@OWNERS("own class")
def own_class(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())
    with _Emptied(own):
        body()
    return own.owned


@OWNERS("own class in an exit stack")
def own_class_in_an_exit_stack(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())
    with contextlib.ExitStack() as stack:
        stack.enter_context(_Emptied(own))
        body()
    return own.owned


@OWNERS("suspended with-block")
def suspended_with_block(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())

    def steps() -> Iterator[None]:
        with _Emptied(own):
            yield

    going = steps()
    next(going)
    body()
    next(going, None)
    return own.owned


@OWNERS("async context manager")
def async_context_manager(take: Take, body: Body) -> list[Any]:
    async def run() -> list[Any]:
        own = ProgramObject(take())
        async with _emptied_async(own):
            body()
        return own.owned

    return complete(run())


@OWNERS("async exit stack")
def async_exit_stack(take: Take, body: Body) -> list[Any]:
    async def run() -> list[Any]:
        own, other = ProgramObject(take()), ProgramObject([])
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(_emptied_async(own))
            stack.callback(setattr, other, "owned", take())
            body()
        return own.owned or other.owned

    return complete(run())


@OWNERS("async own class")
def async_own_class(take: Take, body: Body) -> list[Any]:
    async def run() -> list[Any]:
        own = ProgramObject(take())
        async with _Emptied(own):
            body()
        return own.owned

    return complete(run())


@OWNERS("async closing")
def async_closing(take: Take, body: Body) -> list[Any]:
    async def run() -> list[Any]:
        own = ProgramObject([])
        async with contextlib.aclosing(_Returning(own, take())):
            body()
        return own.owned

    return complete(run())


@OWNERS("patched attribute")
def patched_attribute(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())
    with mock.patch.object(own, "owned", None):
        body()
    return own.owned


@OWNERS("patched attributes")
def patched_attributes(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())
    mock.patch.multiple(own, owned=None)(body)()
    return own.owned


@OWNERS("patched dict")
def patched_dict(take: Take, body: Body) -> list[Any]:
    patched = dict(enumerate(take()))
    with mock.patch.dict(patched, clear=True):
        body()
    return [*patched.values()]


@OWNERS("started patch")
def started_patch(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())
    patcher = mock.patch.object(own, "owned", None)
    patcher.start()
    body()
    patcher.stop()
    return own.owned


@OWNERS("functional call", accepts="tensors")
def functional_call(take: Take, body: Body) -> list[Any]:
    class Calls(torch.nn.Module):
        def forward(self) -> None:
            body()

    module = Calls()
    module._buffers.update(_module(take())._buffers)
    other = {name: torch.zeros(()) for name in module._buffers}
    torch.func.functional_call(module, other, (), tie_weights=False)
    return [*module._buffers.values()]


@OWNERS("reparametrized module", accepts="tensors")
def reparametrized_module(take: Take, body: Body) -> list[Any]:
    module = _module(take())
    other = {name: torch.zeros(()) for name in module._buffers}
    with stateless._reparametrize_module(module, other):
        body()
    return [*module._buffers.values()]


class _Adds(torch.nn.Module):
    def __init__(self, owned: list[Any]) -> None:
        super().__init__()
        self.owned = tuple(owned)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + len(self.owned)


@OWNERS("cached parametrization")
def cached_parametrization(take: Take, body: Body) -> list[Any]:
    module = torch.nn.Linear(2, 2)
    parametrize.register_parametrization(module, "weight", _Adds(take()))
    with parametrize.cached():
        before = module.weight.tolist()
        body()
        assert module.weight.tolist() == before
    parametrizations: Any = module.parametrizations
    return [*parametrizations.weight[0].owned]
