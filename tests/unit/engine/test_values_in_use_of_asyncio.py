"""Values of tasks, coroutines and connections of asyncio survive a sweep."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from tests.unit.engine.values_in_use import four, sweep, through, total


async def numbers(value: torch.Tensor) -> AsyncIterator[float]:
    local = [four()]
    for _ in range(2):
        await asyncio.sleep(0)
        yield total(value) + total(local[0])


class TestAsyncio:
    def test_asynchronous_generators_of_several_tasks_keep_their_values(self, program: Any) -> None:
        async def consume() -> list[float]:
            return [through(one) async for one in numbers(four())]

        async def main() -> Any:
            program.tasks = [asyncio.create_task(consume()) for _ in range(2)]
            return await asyncio.gather(*program.tasks)

        assert asyncio.run(main()) == [[8, 8]] * 2

    def test_a_suspended_asynchronous_generator_in_a_task_can_be_resumed(self, program: Any) -> None:
        async def resume(generator: Any) -> float:
            return await anext(generator, 0.0)

        async def main() -> float:
            generator = numbers(four())
            await anext(generator)
            program.task = asyncio.create_task(resume(generator))
            del generator
            await asyncio.sleep(0)
            sweep()
            result: float = await program.task
            return result

        assert asyncio.run(main()) == 8

    def test_a_cancelled_task_cleans_up_with_its_values(self, program: Any) -> None:
        totals = []

        @contextlib.asynccontextmanager
        async def cleaning(value: torch.Tensor) -> AsyncIterator[None]:
            try:
                yield
            finally:
                await asyncio.sleep(0)
                totals.append(total(value))

        async def work() -> None:
            async with cleaning(four()):
                await asyncio.sleep(60)

        async def main() -> None:
            program.task = asyncio.create_task(work())
            await asyncio.sleep(0)
            sweep()
            program.task.cancel()
            await asyncio.sleep(0)
            sweep()
            with contextlib.suppress(asyncio.CancelledError):
                await program.task

        asyncio.run(main())
        assert totals == [4]

    def test_a_generator_that_is_being_closed_cleans_up_with_its_values(self) -> None:
        totals = []

        async def generate() -> AsyncIterator[int]:
            local = [four()]
            try:
                yield 1
            finally:
                totals.append(total(local[0]))

        async def main() -> None:
            generator: Any = generate()
            await anext(generator)
            closing = generator.aclose()
            del generator
            sweep()
            await closing

        asyncio.run(main())
        assert totals == [4]

    def test_a_full_queue_keeps_the_values_of_the_tasks_that_put(self, program: Any) -> None:
        async def put() -> None:
            for _ in range(3):
                await program.queue.put(four())

        async def main() -> list[float]:
            program.queue = asyncio.Queue(1)
            program.task = asyncio.create_task(put())
            await asyncio.sleep(0)
            sweep()
            return [total(await program.queue.get()) for _ in range(3)]

        assert asyncio.run(main())[1:] == [4] * 2

    def test_a_protocol_made_for_a_connection_keeps_its_values(self) -> None:
        totals = []

        def factory() -> asyncio.Protocol:
            value = four()

            class Protocol(asyncio.Protocol):
                def connection_made(self, transport: Any) -> None:
                    self.transport = transport

                def data_received(self, data: bytes) -> None:
                    totals.append(total(value))
                    self.transport.close()

            return Protocol()

        async def main() -> None:
            server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await asyncio.sleep(0.02)
            sweep()
            writer.write(b"x")
            await reader.read()
            writer.close()
            server.close()

        asyncio.run(main())
        assert totals == [4]

    def test_a_task_that_started_eagerly_keeps_its_values(self, program: Any) -> None:
        factory = getattr(asyncio, "eager_task_factory", None)
        if factory is None:
            pytest.skip("before Python 3.12 no task starts eagerly")

        async def work(value: torch.Tensor) -> float:
            local = [four()]
            await program.future
            return total(value) + total(local[0])

        async def main() -> float:
            loop = asyncio.get_running_loop()
            loop.set_task_factory(factory)
            program.future = loop.create_future()
            program.task = asyncio.create_task(work(four()))
            sweep()
            program.future.set_result(None)
            result: float = await program.task
            return result

        assert asyncio.run(main()) == 8

    def test_a_loop_of_another_thread_keeps_the_result_of_a_coroutine(self, program: Any) -> None:
        async def work() -> torch.Tensor:
            return four()

        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            program.future = asyncio.run_coroutine_threadsafe(work(), loop)
            program.future.exception(60)
            sweep()
            assert total(program.future.result()) == 4
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
