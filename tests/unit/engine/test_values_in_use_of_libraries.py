"""Values that libraries beside torch hold, or will call back with, survive a sweep.

Some of these libraries are in no environment of the project. Their tests run where they are installed.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.unit.engine.values_in_use import four, reads, sweep, total


def adds_to(totals: list[float]) -> Callable[..., None]:
    """A callback that alone refers to its tensor."""
    value = four()
    return lambda *_, **__: totals.append(total(value))


class TestAnyio:
    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    def test_tasks_and_streams_of_anyio_keep_their_values(self, backend: str, program: Any) -> None:
        anyio = pytest.importorskip("anyio")
        pytest.importorskip("anyio.to_thread")
        pytest.importorskip(backend)
        totals = []

        async def work(value: torch.Tensor) -> None:
            local = [four()]
            await program.event.wait()
            totals.append(total(value) + total(local[0]))

        async def send() -> None:
            await program.send.send(four())

        async def main() -> None:
            program.event = anyio.Event()
            program.send, program.receive = anyio.create_memory_object_stream(0)
            async with anyio.create_task_group() as group:
                group.start_soon(work, four())
                group.start_soon(send)
                await anyio.sleep(0.01)
                group.start_soon(work, four())
                group.start_soon(anyio.to_thread.run_sync, lambda x: totals.append(total(x)), four())
                sweep()
                program.event.set()
                totals.append(total(await program.receive.receive()))

        anyio.run(main, backend=backend)
        assert sorted(totals) == [4, 4, 8, 8]


class TestTrio:
    def test_channels_threads_and_tasks_of_trio_keep_their_values(self, program: Any) -> None:
        trio = pytest.importorskip("trio")
        totals = []

        async def work(value: torch.Tensor) -> None:
            await program.event.wait()
            totals.append(total(value))

        async def send() -> None:
            await program.send.send(four())

        def starting() -> Any:
            value = four()
            return lambda: work(value)

        async def main() -> None:
            program.variable = trio.lowlevel.RunVar("variable")
            program.variable.set(four())
            program.event = trio.Event()
            program.send, program.receive = trio.open_memory_channel(0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                nursery.start_soon(trio.to_thread.run_sync, lambda x: totals.append(total(x)), four())
                nursery.start_soon(starting())
                await trio.sleep(0)
                with trio.CancelScope():
                    sweep()
                program.event.set()
                totals.append(total(await program.receive.receive()))
            totals.append(total(program.variable.get()))

        trio.run(main)
        assert totals == [4] * 4


class TestGreenlets:
    def test_a_greenlet_that_has_not_begun_keeps_its_arguments(self) -> None:
        greenlet = pytest.importorskip("greenlet")
        one = greenlet.greenlet(functools.partial(total, four()))
        sweep()
        assert one.switch() == 4

    def test_greenlets_of_gevent_keep_their_values(self) -> None:
        gevent = pytest.importorskip("gevent")
        totals = []

        def work(value: torch.Tensor) -> None:
            local = [four()]
            gevent.sleep(0.01)
            totals.append(total(value) + total(local[0]))

        def start() -> None:
            gevent.spawn(work, four())
            gevent.sleep(0)
            gevent.spawn(lambda value: totals.append(total(value)), four())
            gevent.spawn_later(0.03, lambda value: totals.append(total(value)), four())

        start()
        sweep()
        gevent.sleep(0.1)
        assert totals == [4, 8, 4]

    def test_queues_results_and_pools_of_gevent_keep_their_values(self, program: Any) -> None:
        gevent = pytest.importorskip("gevent")
        events, queues, pools = (pytest.importorskip(f"gevent.{name}") for name in ("event", "queue", "pool"))
        totals = []

        def work(value: torch.Tensor) -> None:
            program.event.wait()
            totals.append(total(value))

        program.event = events.Event()
        queue, result = queues.Queue(), events.AsyncResult()
        gevent.spawn(work, four())
        gevent.sleep(0)
        queue.put(four())
        result.set(four())
        mapped = pools.Pool(1).imap(lambda one: one * 1, [four(), four()])
        gevent.sleep(0.05)
        sweep()
        program.event.set()
        gevent.sleep(0.01)
        assert totals == [4]
        assert [total(one) for one in (queue.get(), result.get(), *mapped)] == [4] * 4


class TestContainers:
    def test_sorted_containers_keep_their_values(self) -> None:
        containers = pytest.importorskip("sortedcontainers")
        values = iter(containers.SortedDict({1: four(), 2: [four()]}).values())
        ordered = containers.SortedKeyList([four(), four()], key=len)
        sweep()
        assert total(next(values)) + total(next(values)[0]) + total(ordered[1]) == 12

    @pytest.mark.imports_much
    def test_a_graph_of_networkx_keeps_the_attributes_of_nodes_and_edges(self) -> None:
        networkx = pytest.importorskip("networkx")

        def made() -> Any:
            graph = networkx.DiGraph()
            graph.add_node(1, value=four())
            graph.add_edge(1, 2, values=[four()])
            return graph.edges(data=True), networkx.subgraph_view(graph, filter_node=reads(four()))

        edges, view = made()
        sweep()
        assert total(next(iter(edges))[2]["values"][0]) == 4
        assert total(view.nodes[1]["value"]) == 4

    def test_immutable_maps_keep_their_values(self) -> None:
        immutables = pytest.importorskip("immutables")
        referent = immutables.Map({"a": four()})
        items, mutation = iter(referent.items()), referent.mutate()
        mutation["b"] = four()
        sweep()
        assert total(referent["a"]) + total(mutation["b"]) + total(next(items)[1]) == 12

    @pytest.mark.imports_much
    def test_columns_and_groups_of_pandas_keep_their_values(self) -> None:
        pandas = pytest.importorskip("pandas")

        def made() -> Any:
            column = pandas.DataFrame({"a": [four(), four()], "b": [1, 2]})["a"]
            return column, pandas.Series([four(), four()]).groupby([0, 1])

        column, groups = made()
        sweep()
        assert [total(one) for one in column] == [4, 4]
        assert [total(next(iter(group))) for _, group in groups] == [4, 4]

    def test_cases_and_expectations_of_pytest_keep_their_values(self) -> None:
        case, expected = pytest.param(four()), pytest.approx(four())
        sweep()
        assert total(case.values[0]) == 4
        assert expected == [1.0] * 4


class TestCallbacks:
    def test_callbacks_of_c_keep_their_values(self, program: Any) -> None:
        cffi = pytest.importorskip("cffi")
        ffi = cffi.FFI()
        totals: list[float] = []

        def made() -> Any:
            value = four()
            callback = ffi.callback("int(int)", lambda added: int(total(value)) + added)
            return callback, ffi.new_handle([four()]), ffi.gc(ffi.new("int*"), adds_to(totals))

        callback, handle, memory = made()
        sweep()
        del memory
        assert (callback(1), total(ffi.from_handle(handle)[0]), totals) == (5, 4, [4])

    def test_message_handlers_of_a_notebook_keep_their_values(self) -> None:
        comm = pytest.importorskip("comm")
        totals: list[float] = []
        manager = comm.get_comm_manager()

        def open_comm() -> str:
            one = comm.create_comm(target_name="target")
            manager.register_comm(one)
            one.on_msg(adds_to(totals))
            return str(one.comm_id)

        name = open_comm()
        sweep()
        try:
            manager.get_comm(name).handle_msg({})
        finally:
            manager.unregister_comm(manager.get_comm(name))
        assert totals == [4]

    def test_a_live_display_keeps_the_values_that_it_shows(self) -> None:
        live, console = pytest.importorskip("rich.live"), pytest.importorskip("rich.console")

        def made() -> Any:
            value = four()
            return live.Live(
                get_renderable=lambda: f"total {total(value)}",
                console=console.Console(file=file),
                auto_refresh=False,
            )

        file = io.StringIO()
        with made() as display:
            sweep()
            file.truncate(0)
            display.refresh()
        assert "total 4.0" in file.getvalue()

    def test_receivers_of_signals_keep_their_values(self) -> None:
        blinker = pytest.importorskip("blinker")
        totals: list[float] = []
        blinker.signal("of_test").connect(adds_to(totals), weak=False)
        sweep()
        blinker.signal("of_test").send(None)
        assert totals == [4]
