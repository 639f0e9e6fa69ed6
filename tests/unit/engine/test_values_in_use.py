"""Values that running code needs survive a sweep, in unusual states of tasks, C code and classes."""

from __future__ import annotations

import asyncio
import builtins
import collections
import contextlib
import copy
import ctypes
import functools
import heapq
import io
import itertools
import json
import operator
import pickle
import re
import sched
import signal
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fastpurge import is_purged

from tests.unit.engine.values_in_use import four, sweep, through, total


def made(count: int = 3) -> Iterator[torch.Tensor]:
    """Tensors that only the consumer refers to; a sweep runs before each."""
    for _ in range(count):
        yield through(four())


class TestTasks:
    def test_results_taken_as_tasks_complete_are_kept(self) -> None:
        async def work() -> torch.Tensor:
            await asyncio.sleep(0.001)
            return four()

        async def main() -> list[float]:
            return [total(through(await one)) for one in asyncio.as_completed([work() for _ in range(3)])]

        assert asyncio.run(main()) == [4] * 3

    def test_finished_tasks_in_a_queue_keep_their_results(self) -> None:
        async def work() -> torch.Tensor:
            return four()

        async def main() -> list[float]:
            done: asyncio.Queue[Any] = asyncio.Queue()
            for _ in range(3):
                asyncio.create_task(work()).add_done_callback(done.put_nowait)
            await asyncio.sleep(0.01)
            sweep()
            return [total((await done.get()).result()) for _ in range(3)]

        assert asyncio.run(main()) == [4] * 3

    def test_nested_task_results_are_kept(self) -> None:
        async def work(before: Any) -> tuple[torch.Tensor, Any]:
            return four(), before

        async def main() -> float:
            last = None
            for _ in range(5):
                last = types.SimpleNamespace(task=asyncio.create_task(work(last)))
                await last.task
            await asyncio.sleep(0)
            sweep()
            totals = 0.0
            while last is not None:
                value, last = last.task.result()
                totals += total(value)
            return totals

        assert asyncio.run(main()) == 20

    def test_a_gathered_group_of_tasks_keeps_its_results(self) -> None:
        async def work(seconds: float) -> torch.Tensor:
            await asyncio.sleep(seconds)
            return four()

        async def main() -> list[float]:
            shield = asyncio.shield(work(0.02))
            both = asyncio.gather(work(0), work(0.02))
            await asyncio.sleep(0.01)
            sweep()
            return [total(one) for one in (*await both, await shield)]

        assert asyncio.run(main()) == [4] * 3

    def test_an_asyncio_server_answers_a_connection(self) -> None:
        async def serve(reader: Any, writer: Any) -> None:
            local = [four()]
            await reader.readline()
            writer.write(str(total(local[0])).encode())
            writer.close()

        async def main() -> bytes:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await asyncio.sleep(0.02)
            sweep()
            writer.write(b"\n")
            answer: bytes = await reader.read()
            writer.close()
            server.close()
            return answer

        assert asyncio.run(main()) == b"4.0"

    def test_tasks_of_other_event_loops_keep_their_values(self) -> None:
        trio = pytest.importorskip("trio")
        totals = []

        async def work(event: Any, value: torch.Tensor) -> None:
            local = {"k": four()}
            await event.wait()
            totals.append(total(value) + total(local["k"]))

        async def main() -> None:
            event, (send, receive) = trio.Event(), trio.open_memory_channel(1)
            await send.send(four())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work, event, four())
                await trio.sleep(0)
                nursery.start_soon(work, event, four())
                sweep()
                event.set()
            totals.append(total(await receive.receive()))

        trio.run(main)
        assert totals == [8, 8, 4]

    def test_a_suspended_greenlet_keeps_its_values(self) -> None:
        greenlet = pytest.importorskip("greenlet")

        def work(value: torch.Tensor) -> float:
            local = [four()]
            given = greenlet.getcurrent().parent.switch()
            return total(value) + total(local[0]) + total(given)

        one = greenlet.greenlet(work)
        one.switch(four())
        sweep()
        assert one.switch(four()) == 12


DERIVED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], torch.Tensor]]] = {
    "collections.UserDict": (lambda of: of(x=four()), lambda referent: referent["x"]),
    "collections.UserList": (lambda of: of([four()]), lambda referent: referent[0]),
    "collections.ChainMap": (lambda of: of({}, {"x": four()}), lambda referent: referent["x"]),
    "types.SimpleNamespace": (lambda of: of(x=[four()]), lambda referent: referent.x[0]),
    "functools.partial": (lambda of: of(torch.add, four()), lambda referent: referent(0)),
    "queue.Queue": (lambda of: _filled(of()), lambda referent: referent.get_nowait()),
    "queue.PriorityQueue": (lambda of: _filled(of()), lambda referent: referent.get_nowait()),
    "queue.SimpleQueue": (lambda of: _filled(of()), lambda referent: referent.get_nowait()),
    "asyncio.Queue": (lambda of: _filled(of()), lambda referent: referent.get_nowait()),
    "transformers.BatchEncoding": (lambda of: of({"x": four()}), lambda referent: referent["x"]),
}


@pytest.mark.parametrize("name", DERIVED)
def test_a_local_of_a_derived_container_class_keeps_its_contents(name: str) -> None:
    module, _, attribute = name.partition(".")
    make, read = DERIVED[name]
    base = getattr(pytest.importorskip(module), attribute)
    referent = make(type("Derived", (base,), {"__module__": __name__}))
    sweep()
    assert total(read(referent)) == 4


class TestC:
    """Objects that C code works on, or will call."""

    def test_ctypes_objects_keep_their_values(self) -> None:
        array: Any = ctypes.py_object * 2
        pair = array(four(), four())
        record: Any = type("Record", (ctypes.Structure,), {"_fields_": [("value", ctypes.py_object)]})(four())
        pointer = ctypes.pointer(ctypes.py_object(four()))
        sweep()
        assert total(pair[1]) == total(record.value) == total(pointer.contents.value) == 4

    def test_a_ctypes_callback_can_be_called_after_a_sweep(self) -> None:
        def doubled(value: torch.Tensor) -> Any:
            return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object)(
                lambda given: int(total(value) + total(through(given)[0]))
            )

        callback = doubled(four())
        sweep()
        assert callback([four()]) == 8

    @pytest.mark.parametrize(
        "take",
        [
            *(sorted, list, set, collections.deque, dict.fromkeys),
            lambda items: [*items],
            lambda items: [item for item in [one for one in items]],  # noqa: C416
            lambda items: _given(*items),
            lambda items: heapq.nlargest(3, items, key=total),
            lambda items: [*heapq.merge(items, key=total)],
            lambda items: [*itertools.chain.from_iterable([[], items])],
            lambda items: [*filter(lambda one: through(True), items)],
            lambda items: [*itertools.islice(itertools.cycle(items), 3)],
            lambda items: [one for one, _ in zip(items, made(), strict=True)],
            lambda items: functools.reduce(lambda taken, one: [*through(taken), one], items, []),
        ],
    )
    def test_values_from_a_generator_that_sweeps_are_complete(self, take: Callable[..., Any]) -> None:
        items = map(lambda one: one if take is not sorted else _Ordered([one]), made())  # noqa: C417
        assert sum(total(one[0] if take is sorted else one) for one in take(items)) == 12

    def test_lists_being_sorted_are_complete(self) -> None:
        sizes = [3, 2, 4]
        items = [torch.ones(size) for size in sizes]
        items.sort(key=lambda one: _Ordered([torch.ones(len(one))]))
        assert [total(one) for one in items] == [2, 3, 4]

    def test_objects_being_pickled_or_copied_are_complete(self) -> None:
        loaded: Any = pickle.loads(pickle.dumps((four(), _Sweeps(), four())))
        copied: Any = copy.deepcopy({"a": four(), "b": _Sweeps(), "c": [four()]})
        file = io.BytesIO()
        torch.save([four(), _Sweeps(), four()], file)
        file.seek(0)
        read = torch.load(file, weights_only=False)
        assert [total(one) for one in (loaded[0], loaded[2], copied["c"][0], read[0], read[2])] == [4] * 5

    def test_callbacks_given_to_the_standard_library_keep_their_values(self) -> None:
        totals = []

        def adds(value: torch.Tensor) -> Callable[..., Any]:
            return lambda *_: totals.append(total(value))

        class Resource: ...

        resource = Resource()
        reference = weakref.ref(resource, adds(four()))
        scheduler = sched.scheduler()
        scheduler.enter(0.001, 1, adds(four()))
        scheduler.enter(0, 1, sweep)
        before = signal.signal(signal.SIGINT, adds(four()))
        call, text = (
            operator.methodcaller("add", four()),
            json.dumps([four()], default=lambda x: through(x).tolist()),
        )
        replaced = re.sub("a", functools.partial(lambda x, _: through(str(total(x))), four()), "aa")
        try:
            scheduler.run()
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)
        del resource
        assert (reference(), totals) == (None, [4] * 3)
        assert (total(call(four())), text, replaced) == (8, "[[1.0, 1.0, 1.0, 1.0]]", "4.04.0")

    def test_a_with_block_in_a_suspended_generator_restores_its_value(self, program: Any) -> None:
        @contextlib.contextmanager
        def saved() -> Iterator[None]:
            before, program.value = program.value, None
            try:
                yield
            finally:
                program.value = before

        def inner() -> Iterator[int]:
            with saved():
                yield from (1, 2)

        program.value = four()
        outer = map(operator.neg, (one for one in inner()))
        next(outer)
        sweep()
        assert [*outer] == [-2]
        assert total(program.value) == 4

    def test_a_class_body_under_execution_keeps_its_names(self) -> None:
        class Made:
            value, values = four(), [four()]
            sweep()
            totals = total(value) + total(values[0])

        assert Made.totals == 8


class TestTypesThatAnswerNothing:
    def test_a_module_name_of_another_type_ends_no_sweep(self) -> None:
        names: tuple[Any, ...] = (None, 5, four(), "", "..", "tornado..web\ud800", "a" * 10_000)
        referent = [type("Odd", (dict,), {"__module__": name})(x=four()) for name in names]
        sweep()
        assert [total(one["x"]) for one in referent] == [4] * len(names)

    def test_forgotten_training_objects_are_released_by_another_thread(self, program: Any) -> None:
        program.model = torch.nn.Linear(5, 5)
        program.optimizer = torch.optim.Adam(program.model.parameters())
        program.loss = program.model(torch.ones(1, 5)).sum()
        program.loss.backward()
        program.optimizer.step()
        weight = weakref.ref(program.model.weight)
        threading.Thread(target=sweep).start()
        deadline = time.monotonic() + 60
        while not is_purged(program.loss) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_purged(program.loss)
        assert weight() is None or is_purged(weight())


def _filled(waiting: Any) -> Any:
    waiting.put_nowait(four())
    return waiting


def _given(*arguments: Any) -> tuple[Any, ...]:
    return arguments


class _Ordered(list[Any]):
    def __lt__(self, other: Any) -> bool:
        sweep()
        return total(self[0]) < total(other[0])


class _Sweeps:
    def __reduce__(self) -> Any:
        sweep()
        return through, (sys.maxsize,)


def test_keys_under_comparison_are_kept() -> None:
    class Key:
        def __init__(self, value: torch.Tensor) -> None:
            self.value = value

        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            sweep()
            return False

    values: Any = {Key(four()): four(), Key(four()): [four()], 3: four()}
    sweep()
    first, second, third = values.values()
    assert total(first) + total(second[0]) + total(third) == 12


def test_exceptions_of_a_group_keep_their_arguments() -> None:
    group: Any = vars(builtins).get("ExceptionGroup")
    if group is None:
        pytest.skip("before Python 3.11 there are no groups")

    def fail() -> None:
        try:
            raise group("outer", [group("inner", [ValueError(four())])])
        except group as error:
            raise KeyError([four()]) from error

    try:
        fail()
    except KeyError as error:
        sweep()
        cause: Any = error.__cause__
        totals = [total(error.args[0][0]), total(cause.exceptions[0].exceptions[0].args[0])]
    assert totals == [4, 4]


def test_arguments_evaluated_before_the_sweep_are_kept() -> None:
    def sums(*values: torch.Tensor, key: torch.Tensor, **named: torch.Tensor) -> float:
        sweep()
        return sum(total(one) for one in (*values, key, *named.values()))

    assert sums(four(), *made(1), key=through(four()), z=through(four())) == 16
    assert f"{total(four())}{through('')}{total(through(four()))}" == "4.04.0"
    assert [total(one) for one in (four(), *made(2), through(four()))] == [4] * 4
