"""With-blocks that restore on their way out what they have saved, and decorators made of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn.utils import parametrize, stateless

from .owner import Body, Own, Take, Uses, complete, copy_of

USES = Uses()


@contextlib.contextmanager
def _emptied(own: Own) -> Iterator[None]:
    saved, own.held = own.held, []
    try:
        yield
    finally:
        own.held = saved


@contextlib.asynccontextmanager
async def _emptied_async(own: Own) -> AsyncIterator[None]:
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
    """Stores and restores in methods of its own, as weights averaged over training do."""

    def __init__(self, own: Own) -> None:
        self.own = own
        self.saved: list[Any] = []

    def __enter__(self) -> None:
        self.saved, self.own.held = self.own.held, []

    def __exit__(self, *_: object) -> None:
        self.own.held = self.saved

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


class _Returning:
    """Gives what it holds to others when it is closed."""

    def __init__(self, own: Own, held: list[Any]) -> None:
        self.own, self.held = own, held

    def close(self) -> None:
        self.own.held = self.held

    async def aclose(self) -> None:
        self.close()


def _module(buffers: list[Any]) -> Any:
    module = torch.nn.Module()
    # Past `register_buffer`, which takes no non-leaf.
    module._buffers.update({f"of{at}": one for at, one in enumerate(buffers)})
    return module


@USES("context manager")
def context_manager(take: Take, body: Body) -> list[Any]:
    own = Own(take())
    with _emptied(own):
        body()
    return own.held


@USES("context manager that copies", accepts="tensors", holds="copies")
def context_manager_that_copies(take: Take, body: Body) -> list[Any]:
    module = _module(copy_of(take()))
    with _zeroed(module):
        body()
    return [*module.buffers()]


@USES("context managers in each other")
def context_managers_in_each_other(take: Take, body: Body) -> list[Any]:
    own = Own(take())

    @contextlib.contextmanager
    def outer() -> Iterator[None]:
        with _emptied(own):
            yield

    with contextlib.nullcontext(), outer():
        body()
    return own.held


@USES("decorator")
def decorator(take: Take, body: Body) -> list[Any]:
    own = Own(take())
    _emptied(own)(body)()
    return own.held


@USES("exit stack")
def exit_stack(take: Take, body: Body) -> list[Any]:
    own = Own(take())
    with contextlib.ExitStack() as stack:
        stack.enter_context(_emptied(own))
        body()
    return own.held


@USES("callback of an exit stack")
def callback_of_an_exit_stack(take: Take, body: Body) -> list[Any]:
    own = Own([])
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, own, "held", take())
        body()
    return own.held


@USES("exit stack that is taken over")
def exit_stack_that_is_taken_over(take: Take, body: Body) -> list[Any]:
    own = Own(take())
    with contextlib.ExitStack() as stack:
        stack.enter_context(_emptied(own))
        taken_over = stack.pop_all()
    body()
    taken_over.close()
    return own.held


@USES("closing")
def closing(take: Take, body: Body) -> list[Any]:
    own = Own([])
    with contextlib.closing(_Returning(own, take())):
        body()
    return own.held


@USES("null context")
def null_context(take: Take, body: Body) -> list[Any]:
    entered = contextlib.nullcontext(take())
    with entered:
        body()
    return entered.enter_result


@USES("own class")
def own_class(take: Take, body: Body) -> list[Any]:
    own = Own(take())
    with _Emptied(own):
        body()
    return own.held


@USES("own class in an exit stack")
def own_class_in_an_exit_stack(take: Take, body: Body) -> list[Any]:
    own = Own(take())
    with contextlib.ExitStack() as stack:
        stack.enter_context(_Emptied(own))
        body()
    return own.held


@USES("suspended with-block")
def suspended_with_block(take: Take, body: Body) -> list[Any]:
    own = Own(take())

    def steps() -> Iterator[None]:
        with _Emptied(own):
            yield

    going = steps()
    next(going)
    body()
    next(going, None)
    return own.held


@USES("async context manager")
def async_context_manager(take: Take, body: Body) -> list[Any]:
    async def run() -> list[Any]:
        own = Own(take())
        async with _emptied_async(own):
            body()
        return own.held

    return complete(run())


@USES("async exit stack")
def async_exit_stack(take: Take, body: Body) -> list[Any]:
    async def run() -> list[Any]:
        own, other = Own(take()), Own([])
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(_emptied_async(own))
            stack.callback(setattr, other, "held", take())
            body()
        return own.held or other.held

    return complete(run())


@USES("async own class")
def async_own_class(take: Take, body: Body) -> list[Any]:
    async def run() -> list[Any]:
        own = Own(take())
        async with _Emptied(own):
            body()
        return own.held

    return complete(run())


@USES("async closing")
def async_closing(take: Take, body: Body) -> list[Any]:
    async def run() -> list[Any]:
        own = Own([])
        async with contextlib.aclosing(_Returning(own, take())):
            body()
        return own.held

    return complete(run())


@USES("patched attribute")
def patched_attribute(take: Take, body: Body) -> list[Any]:
    own = Own(take())
    with mock.patch.object(own, "held", None):
        body()
    return own.held


@USES("patched attributes")
def patched_attributes(take: Take, body: Body) -> list[Any]:
    own = Own(take())
    mock.patch.multiple(own, held=None)(body)()
    return own.held


@USES("patched dict")
def patched_dict(take: Take, body: Body) -> list[Any]:
    patched = dict(enumerate(take()))
    with mock.patch.dict(patched, clear=True):
        body()
    return [*patched.values()]


@USES("started patch")
def started_patch(take: Take, body: Body) -> list[Any]:
    own = Own(take())
    patcher = mock.patch.object(own, "held", None)
    patcher.start()
    body()
    patcher.stop()
    return own.held


@USES("functional call", accepts="tensors")
def functional_call(take: Take, body: Body) -> list[Any]:
    class Calls(torch.nn.Module):
        def forward(self) -> None:
            body()

    module = Calls()
    module._buffers.update(_module(take())._buffers)
    other = {name: torch.zeros(()) for name in module._buffers}
    torch.func.functional_call(module, other, (), tie_weights=False)
    return [*module._buffers.values()]


@USES("reparametrized module", accepts="tensors")
def reparametrized_module(take: Take, body: Body) -> list[Any]:
    module = _module(take())
    other = {name: torch.zeros(()) for name in module._buffers}
    with stateless._reparametrize_module(module, other):
        body()
    return [*module._buffers.values()]


class _Adds(torch.nn.Module):
    def __init__(self, held: list[Any]) -> None:
        super().__init__()
        self.held = tuple(held)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + len(self.held)


@USES("cached parametrization")
def cached_parametrization(take: Take, body: Body) -> list[Any]:
    module = torch.nn.Linear(2, 2)
    parametrize.register_parametrization(module, "weight", _Adds(take()))
    with parametrize.cached():
        before = module.weight.tolist()
        body()
        assert module.weight.tolist() == before
    parametrizations: Any = module.parametrizations
    return [*parametrizations.weight[0].held]
