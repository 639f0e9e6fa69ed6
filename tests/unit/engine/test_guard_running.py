"""`Guard.RUNNING` spares the objects of running code."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import Guard, is_purged
from fastpurge.torch_facts.tensors import OWNED_TENSORS_REFERENCE_THEMSELVES

CALLS = {
    "function": "def run(): BODY\nrun()",
    "generator": "def run():\n yield\n BODY\nlist(run())",
    "coroutine": "async def run(): BODY\nlist(run().__await__())",
    "async generator": "async def run():\n BODY\n yield\nlist(run().asend(None).__await__())",
}


def _locals_after_a_sweep(call: str, *, beside_a_thread: bool) -> str:
    body = "local = torch.ones(3); sweep(); print(fastpurge.is_purged(local)); stop.set()"
    program = f"""
import fastpurge, threading, torch
stop = threading.Event()
if {beside_a_thread}:
    threading.Thread(target=stop.wait).start()
def sweep():
    fastpurge.sweep(keep=(), guards=fastpurge.Guard.NONE)
{call.replace("BODY", body)}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class TestRunning:
    """Objects of running code are spared."""

    def test_locals_are_spared_with_their_contents(self, program: Any) -> None:
        local = torch.ones(3)
        model = torch.nn.Sequential(torch.nn.Linear(3, 3))
        nested = {"k": [(torch.ones(5),)]}
        program.forgotten = torch.ones(7)
        report = fastpurge.sweep(keep=())
        assert local.sum() == 3
        assert model(local).shape == (3,)
        assert nested["k"][0][0].sum() == 5
        assert is_purged(program.forgotten)
        assert report.spared["running"] >= 32

    def test_the_gradient_of_a_local_is_spared(self) -> None:
        local = torch.ones(3, requires_grad=True)
        (local**2).sum().backward()
        fastpurge.sweep(keep=())
        assert local.grad.tolist() == [2, 2, 2]  # type: ignore[union-attr]

    def test_without_the_guard_locals_are_released(self) -> None:
        referent = [torch.ones(3)]
        fastpurge.sweep(keep=(), guards=Guard.ALL & ~Guard.RUNNING)
        assert is_purged(referent[0])

    def test_without_the_guard_a_single_thread_also_releases_direct_references(self) -> None:
        released = str(OWNED_TENSORS_REFERENCE_THEMSELVES)  # before torch 2.10 they are spared
        assert _locals_after_a_sweep(CALLS["function"], beside_a_thread=False) == released

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_without_the_guard_direct_references_of_other_threads_stay(self, call: str) -> None:
        # Another thread may be inside an operation on its objects; a release would crash it.
        assert _locals_after_a_sweep(call, beside_a_thread=True) == "False"

    def test_an_object_of_the_program_in_a_local_is_not_traversed(self, program: Any) -> None:
        class Cache:
            pass

        local = Cache()
        local.value = torch.ones(3)  # type: ignore[attr-defined]
        fastpurge.sweep(keep=())
        assert is_purged(local.value)  # type: ignore[attr-defined]

    def test_variables_captured_by_a_closure_are_spared(self) -> None:
        captured = torch.ones(3)

        def inner() -> torch.Tensor:
            return captured

        fastpurge.sweep(keep=())
        assert inner().sum() == 3

    def test_locals_of_a_running_generator_are_spared_and_of_a_forgotten_one_released(
        self, program: Any
    ) -> None:
        def generator() -> Iterator[torch.Tensor]:
            local = torch.ones(3)
            fastpurge.sweep(keep=())
            yield local

        assert next(generator()).sum() == 3

        def forgotten() -> Iterator[None]:
            local = torch.ones(3)
            program.seen = lambda: is_purged(local)
            yield

        program.generator = forgotten()
        next(program.generator)
        fastpurge.sweep(keep=())
        assert program.seen()

    def test_locals_of_a_running_coroutine_are_spared(self) -> None:
        async def coroutine() -> float:
            local = torch.ones(3)
            fastpurge.sweep(keep=())
            return float(local.sum())

        assert asyncio.run(coroutine()) == 3

    def test_classes_derived_from_containers_are_traversed(self) -> None:
        class Output(dict[str, torch.Tensor]):
            pass

        output = Output(logits=torch.ones(3))
        largest = torch.ones(2, 3).max(dim=0)
        fastpurge.sweep(keep=())
        assert output["logits"].sum() == 3
        assert largest.values.sum() == 3

    def test_the_rest_of_an_abstract_iterator_is_spared_in_a_loop(self) -> None:
        class Batches(Iterator[torch.Tensor]):
            def __init__(self) -> None:
                self.rest = [torch.ones(3), torch.ones(3)]

            def __next__(self) -> torch.Tensor:
                if not self.rest:
                    raise StopIteration
                return self.rest.pop()

        sums = []
        for batch in Batches():
            fastpurge.sweep(keep=())
            sums.append(float(batch.sum()))
        assert sums == [3, 3]

    def test_an_interpreter_of_a_traced_graph_is_spared_with_its_values(self) -> None:
        class Interpreter(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                fastpurge.sweep(keep=())
                return super().run_node(n)

        traced = torch.fx.symbolic_trace(lambda x: (x + 1) * (x + 2))
        assert Interpreter(traced).run(torch.ones(3)).tolist() == [6, 6, 6]

    @pytest.mark.imports_much
    def test_a_local_optimizer_is_spared_with_its_contents(self) -> None:
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(3)).sum().backward()
            optimizer.step()
            schedule.step()
            fastpurge.sweep(keep=())
        assert all(state["step"] == 2 for state in optimizer.state.values())

    def test_a_data_loader_in_a_loop_is_spared_with_its_contents(self) -> None:
        data = torch.utils.data.TensorDataset(torch.arange(6.0))
        seen = []
        for (batch,) in torch.utils.data.DataLoader(data, batch_size=2):
            fastpurge.sweep(keep=())
            seen += batch.tolist()
        assert seen == [0, 1, 2, 3, 4, 5]

    def test_temporaries_of_an_expression_are_spared(self) -> None:
        def sweep() -> torch.Tensor:
            fastpurge.sweep(keep=())
            return torch.ones(3)

        assert (torch.ones(3) * 2 + sweep()).tolist() == [3, 3, 3]
        assert torch.cat([torch.ones(1), sweep()]).tolist() == [1, 1, 1, 1]

    def test_a_view_and_its_base_are_both_released(self, program: Any) -> None:
        # The owner of a base is its view, in C++. That is no running code.
        program.base = torch.ones(100)
        program.view = program.base[:5]
        fastpurge.sweep(keep=())
        assert is_purged(program.base)
        assert is_purged(program.view)

    def test_a_base_referenced_only_by_its_view_frees_its_memory(self, program: Any) -> None:
        program.view = torch.ones(100)[:5]
        fastpurge.sweep(keep=())
        gc.collect()
        assert is_purged(program.view)
        assert not [x for x in gc.get_objects() if type(x) is torch.Tensor and x.shape == (100,)]

    def test_a_finished_exception_is_released_and_a_handled_one_is_spared(self, program: Any) -> None:
        def fail() -> None:
            program.locals = []
            activations = torch.ones(3)
            program.check = lambda: is_purged(activations)
            raise ValueError

        try:
            fail()
        except ValueError as error:
            fastpurge.sweep(keep=())
            assert not program.check()
            sys.last_value = error
        try:
            fastpurge.sweep(keep=())
            assert program.check()
        finally:
            del sys.last_value

    def test_locals_of_a_thread_that_computes_are_spared(self) -> None:
        results: list[bool] = []
        stop = threading.Event()
        started = threading.Event()

        def compute() -> None:
            torch.manual_seed(1)
            a = torch.randn(50, 50)
            expected = ((a @ a).relu() + a).sum()
            while not stop.is_set():
                results.append(bool(torch.equal(((a @ a).relu() + a).sum(), expected)))
                started.set()

        thread = threading.Thread(target=compute)
        thread.start()
        started.wait()
        for _ in range(10):
            fastpurge.sweep(keep=())
        stop.set()
        thread.join()
        assert len(results) > 1
        assert all(results)

    @pytest.mark.parametrize("guards", [Guard.ALL, Guard.RUNNING])
    def test_a_running_custom_backward_keeps_its_context(self, guards: Guard) -> None:
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                ctx.save_for_backward(x * 3)
                ctx.factors = [x.detach() * 2]
                return x * 2

            @staticmethod
            def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
                fastpurge.sweep(keep=(), guards=guards)
                product: torch.Tensor = grad * ctx.saved_tensors[0] * ctx.factors[0]
                return product

        x = torch.ones(3, requires_grad=True)
        Double.apply(x * 1).sum().backward()
        assert x.grad.tolist() == [6, 6, 6]  # type: ignore[union-attr]
