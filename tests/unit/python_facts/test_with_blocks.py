"""Objects that the end of a with-block restores are in use."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import fastpurge
import pytest
import torch
from fastpurge import is_purged


def test_a_generator_that_is_a_context_manager_restores() -> None:
    @contextlib.contextmanager
    def averaged(model: torch.nn.Module, other: dict[str, torch.Tensor]) -> Iterator[None]:
        saved = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(other)
        try:
            yield
        finally:
            model.load_state_dict(saved)

    model = torch.nn.Linear(4, 4)
    expected = model.weight.tolist()
    other = {k: v + 1 for k, v in model.state_dict().items()}
    with averaged(model, other):
        fastpurge.sweep(keep=[model, other])
    assert model.weight.tolist() == expected


def test_functional_call_restores_the_weights_of_a_kept_model() -> None:
    class Model(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            fastpurge.sweep(keep=[model])
            return super().forward(x)

    model = Model(4, 4)
    expected = model.weight.tolist()
    torch.func.functional_call(model, {"weight": torch.zeros(4, 4)}, torch.ones(1, 4))
    assert model.weight.tolist() == expected


def test_an_exit_stack_restores() -> None:
    values: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(values.__setitem__, "x", torch.ones(4))
        stack.enter_context(contextlib.closing(types.SimpleNamespace(close=torch.ones(4).sum)))
        fastpurge.sweep(keep=())
    assert values["x"].sum() == 4


def test_an_exit_stack_without_a_variable_restores(program: Any) -> None:
    program.values = {}

    def enter() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.callback(program.values.__setitem__, "x", torch.ones(4))
        return stack

    with enter():
        fastpurge.sweep(keep=())
    assert program.values["x"].sum() == 4


def test_a_patch_restores(program: Any) -> None:
    program.model = torch.nn.Linear(4, 4)
    weight = program.model.weight
    with mock.patch.dict(program.model._parameters, weight=torch.nn.Parameter(torch.zeros(4, 4))):
        del weight
        fastpurge.sweep(keep=program.model)
    assert program.model.weight.shape == (4, 4)
    expected = program.table = torch.ones(4)
    del expected
    with mock.patch.object(program, "table", None):
        fastpurge.sweep(keep=())
    assert program.table.sum() == 4


def test_a_context_manager_class_of_the_program_restores(program: Any) -> None:
    class Average:
        def __enter__(self) -> None:
            self.saved = [parameter.detach().clone() for parameter in program.model.parameters()]

        def __exit__(self, *_: object) -> None:
            with torch.no_grad():
                for parameter, saved in zip(program.model.parameters(), self.saved, strict=True):
                    parameter.copy_(saved)

    program.model = torch.nn.Linear(4, 4)
    expected = program.model.weight.tolist()
    with Average():
        with torch.no_grad():
            program.model.weight.zero_()
        fastpurge.sweep(keep=program.model)
    assert program.model.weight.tolist() == expected


def test_a_context_manager_of_the_program_restores_from_its_store(program: Any) -> None:
    class Average:
        @contextlib.contextmanager
        def applied(self) -> Iterator[None]:
            self.saved = program.model.weight.detach().clone()
            try:
                yield
            finally:
                program.model.weight.data.copy_(self.saved)

    program.model = torch.nn.Linear(4, 4)
    program.average = Average()
    expected = program.model.weight.tolist()
    with program.average.applied():
        fastpurge.sweep(keep=program.model)
    assert program.model.weight.tolist() == expected


def test_an_asynchronous_manager_of_a_task_that_waits_restores() -> None:
    @contextlib.asynccontextmanager
    async def scaled(values: list[torch.Tensor]) -> Any:
        saved = values[0]
        values[0] = torch.zeros(4)
        try:
            yield
        finally:
            values[0] = saved

    class Manager:
        async def __aenter__(self) -> None:
            self.saved = torch.ones(4)

        async def __aexit__(self, *_: object) -> None:
            self.saved.sum().item()

    async def work(values: list[torch.Tensor], done: asyncio.Event) -> float:
        async with Manager(), contextlib.AsyncExitStack() as stack, scaled(values):
            stack.push_async_callback(done.wait)
            await done.wait()
        return float(values[0].sum())

    async def main() -> float:
        done = asyncio.Event()
        task = asyncio.create_task(work([torch.ones(4)], done))
        await asyncio.sleep(0)
        fastpurge.sweep(keep=())
        done.set()
        return await task

    assert asyncio.run(main()) == 4


def test_a_finished_with_block_keeps_nothing(program: Any) -> None:
    @contextlib.contextmanager
    def saving() -> Iterator[None]:
        program.saved = torch.ones(4)
        yield

    with saving():
        pass
    fastpurge.sweep(keep=())
    assert is_purged(program.saved)


BASES: tuple[tuple[Any, ...], ...] = (  # each with the arguments of an instance
    (object,),
    (list,),
    (dict,),
    (set,),
    (Exception,),
    (types.SimpleNamespace,),
    (queue.Queue,),
    (functools.partial, print),
)


@pytest.mark.parametrize("base", BASES)
def test_a_manager_that_is_a_container_as_well_restores(base: tuple[Any, ...]) -> None:
    of: Any = base[0]

    class Saved:
        def __init__(self) -> None:
            self.value = torch.ones(4)

    class Manager(of):  # type: ignore[misc]
        def __enter__(self) -> None:
            self.saved = Saved()

        def __exit__(self, *_: object) -> None:
            restored.append(self.saved.value.sum().item())

    restored: list[float] = []
    with Manager(*base[1:]):
        fastpurge.sweep(keep=())
    assert restored == [4]


class _Overriding(type):
    """Classes that a with-block accepts."""

    value: Any
    saved: Any

    def __enter__(cls) -> None:
        cls.saved, cls.value = cls.value, None

    def __exit__(cls, *_: object) -> None:
        cls.value = cls.saved


class Settings(metaclass=_Overriding):
    """A class of the program: its attributes are unprotected, except while a with-block restores them."""

    value: Any = None


def test_a_class_that_is_a_manager_itself_restores() -> None:
    Settings.value = torch.ones(4)
    with Settings:
        fastpurge.sweep(keep=())
    assert Settings.value.sum() == 4
    fastpurge.sweep(keep=())
    assert is_purged(Settings.value)
    del Settings.value, Settings.saved
