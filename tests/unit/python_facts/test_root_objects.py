"""Objects that a test runner or a server gives to the code that it runs are in use."""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import fastpurge
import pytest
import torch

Decorator = Callable[..., Callable[..., Any]]


def four() -> torch.Tensor:
    return torch.ones(4)


def total(of: torch.Tensor) -> float:
    return float(of.sum())


def sweep() -> None:
    fastpurge.sweep(keep=())


def test_a_patch_of_pytest_restores(program: Any) -> None:
    program.value = four()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "value", None)
        sweep()
    assert total(program.value) == 4


def test_a_patch_that_another_fixture_has_made_restores(program: Any) -> None:
    program.value, program.patch = four(), pytest.MonkeyPatch()
    program.patch.setattr(program, "value", None)
    sweep()
    program.patch.undo()
    assert total(program.value) == 4


def test_a_patch_that_was_started_restores(program: Any) -> None:
    program.value = four()
    mock.patch.object(program, "value", None).start()
    sweep()
    mock.patch.stopall()
    assert total(program.value) == 4


def test_an_exception_caught_by_pytest_raises_keeps_its_arguments() -> None:
    with pytest.raises(ValueError) as info:  # noqa: PT011
        raise ValueError(four())
    sweep()
    assert total(info.value.args[0]) == 4


def test_a_warning_recorded_by_pytest_warns_keeps_its_attributes() -> None:
    class Remark(UserWarning):
        value: torch.Tensor

    with pytest.warns(Remark) as recorded:  # noqa: PT031 - the block is what is tested
        remark = Remark()
        remark.value = four()
        warnings.warn(remark, stacklevel=1)
        del remark
        sweep()
    assert total(recorded[0].message.value) == 4  # type: ignore[union-attr]


def test_results_of_pluggy_hooks_pass_through_hook_wrappers() -> None:
    pluggy: Any = pytest.importorskip("pluggy")
    spec: Decorator
    implementation: Decorator
    spec, implementation = pluggy.HookspecMarker("named"), pluggy.HookimplMarker("named")

    class Spec:
        @spec(firstresult=True)
        def give(self) -> Any: ...

    class Giver:
        @implementation
        def give(self) -> torch.Tensor:
            return four()

    class Wrapper:
        @implementation(hookwrapper=True)
        def give(self) -> Any:
            outcome = yield
            sweep()
            outcome.get_result()

    manager = pluggy.PluginManager("named")
    manager.add_hookspecs(Spec)
    manager.register(Giver())
    manager.register(Wrapper())
    assert total(manager.hook.give()) == 4


def test_a_queue_of_tornado_keeps_its_items() -> None:
    queues = pytest.importorskip("tornado.queues")

    async def main() -> float:
        waiting = queues.Queue()
        waiting.put_nowait(four())
        sweep()
        return total(await waiting.get())

    assert asyncio.run(main()) == 4


def test_a_suspended_coroutine_of_tornado_keeps_its_values() -> None:
    gen = pytest.importorskip("tornado.gen")
    coroutine: Decorator = gen.coroutine
    totals = []

    async def main() -> None:
        @coroutine
        def work() -> Any:
            local = [four()]
            yield gen.sleep(0.02)
            totals.append(total(local[0]))

        working = work()
        await asyncio.sleep(0)
        sweep()
        await working

    asyncio.run(main())
    assert totals == [4]


def test_a_dict_subclass_with_attributes_keeps_its_values() -> None:
    bunch = pytest.importorskip("traitlets").Bunch(x=four())
    sweep()
    assert total(bunch.x) == 4


def test_a_buffered_log_record_keeps_its_arguments() -> None:
    totals = []

    class Write(logging.Handler):
        def emit(self, record: Any) -> None:
            totals.append(total(record.args[0]))

    logger, handler = logging.Logger("waits"), logging.handlers.MemoryHandler(10, target=Write())
    logger.addHandler(handler)
    logger.info("%s", four())
    del logger
    sweep()
    handler.flush()
    assert totals == [4]
