"""Guards: what nobody named and a sweep spares all the same, each until it is switched off."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import Guard, is_purged
from torch.utils.checkpoint import checkpoint


def without(guard: Guard) -> Guard:
    return Guard.ALL & ~guard


class TestAutograd:
    """Backward gives the same gradients after a sweep, and what it works with stays usable."""

    @pytest.mark.parametrize("wipe", [False, True])
    def test_backward_after_a_sweep_gives_the_same_gradients(self, wipe: bool, program: Any) -> None:
        torch.manual_seed(0)
        program.model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        program.x = torch.randn(4, 8, requires_grad=True)
        program.hidden = program.model[0](program.x)
        program.forgotten = torch.randn(100)
        loss = program.model[2](program.model[1](program.hidden)).pow(2).mean()
        expected = torch.autograd.grad(loss, [program.x, *program.model.parameters()], retain_graph=True)
        report = fastpurge.sweep(keep=[loss, expected], wipe=wipe)
        loss.backward()
        assert is_purged(program.forgotten)
        # The leaves are what `backward` fills in: they are not zombies.
        assert torch.equal(program.x.grad, expected[0])
        assert program.x.requires_grad
        assert report.spared["autograd"] > 0

    def test_leaves_saved_tensors_and_contexts_of_a_kept_graph_stay(self, program: Any) -> None:
        class Scale(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Any, factor: Any) -> Any:
                ctx.save_for_backward(x)
                ctx.factor = factor
                ctx.deep = {"k": [factor * 2]}
                return x * factor

            @staticmethod
            def backward(ctx: Any, grad: Any) -> Any:
                (x,) = ctx.saved_tensors
                assert ctx.deep["k"][0].tolist() == [6]
                assert x.sum() == 3
                return grad * ctx.factor, None

        program.leaf = torch.ones(3, requires_grad=True)
        program.factor = torch.tensor([3.0])
        program.squared = program.leaf**2
        loss = Scale.apply(program.squared, program.factor).sum()
        fastpurge.sweep(keep=[loss], wipe=True)
        loss.backward()
        assert program.leaf.grad.tolist() == [6, 6, 6]
        assert program.factor.tolist() == [3]
        assert program.squared.tolist() == [1, 1, 1]

    def test_switched_off_the_leaves_become_zombies_and_the_numbers_stay(self, program: Any) -> None:
        program.leaf = torch.ones(3, requires_grad=True)
        loss = (program.leaf**2).sum()
        grads: list[torch.Tensor] = []
        program.leaf.register_hook(lambda grad: grads.append(grad.clone()))
        fastpurge.sweep(keep=[loss, grads], guards=without(Guard.AUTOGRAD) & ~Guard.RUNNING, wipe=True)
        assert is_purged(program.leaf)
        loss.backward()
        assert grads[0].tolist() == [2, 2, 2]

    def test_hooks_that_pack_saved_tensors_are_not_run(self, program: Any) -> None:
        unpacked = []

        def unpack(x: torch.Tensor) -> torch.Tensor:
            unpacked.append(x)
            return x

        program.leaf = torch.ones(3, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), unpack):
            loss = (program.leaf**2).sum()
        fastpurge.sweep(keep=[loss], wipe=True)
        assert unpacked == []
        loss.backward()
        assert program.leaf.grad.tolist() == [2, 2, 2]

    def test_a_graph_freed_by_backward_is_no_trouble(self, program: Any) -> None:
        program.leaf = torch.ones(3, requires_grad=True)
        loss = (program.leaf**2).sum()
        loss.backward()
        fastpurge.sweep(keep=[loss])
        assert program.leaf.grad.tolist() == [2, 2, 2]

    def test_a_hook_of_a_node_keeps_what_it_captured(self, program: Any) -> None:
        program.leaf = torch.ones(3, requires_grad=True)
        program.captured = torch.tensor([5.0, 5.0, 5.0])
        loss = (program.leaf**2).sum()

        def add_hook(held: torch.Tensor) -> None:
            loss.grad_fn.next_functions[0][0].register_prehook(lambda grads: (grads[0] * held,))

        add_hook(program.captured)
        fastpurge.sweep(keep=[loss])
        loss.backward()
        assert program.leaf.grad.tolist() == [10, 10, 10]


class TestLibrary:
    """A library's own state is not the user's garbage."""

    @pytest.fixture
    def library(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        # Beside torch: a folder that counts as one of libraries.
        import torch.utils.hooks as library

        class Class:
            pass

        Class.__module__ = library.__name__
        monkeypatch.setattr(library, "fastpurge_value", torch.ones(10), raising=False)
        monkeypatch.setattr(library, "fastpurge_table", {"k": [torch.ones(10)]}, raising=False)
        monkeypatch.setattr(library, "fastpurge_model", torch.nn.Linear(4, 4), raising=False)
        monkeypatch.setattr(library, "FastpurgeClass", Class, raising=False)
        Class.value = torch.ones(10)  # type: ignore[attr-defined]
        yield library
        # Clear what is left, so that nothing is found by another test.
        del Class.value  # type: ignore[attr-defined]

    def test_module_and_class_level_state_is_spared_with_all_it_holds(self, library: Any) -> None:
        report = fastpurge.sweep(keep=())
        assert library.fastpurge_value.sum() == 10
        assert library.fastpurge_table["k"][0].sum() == 10
        assert library.fastpurge_model(torch.ones(4)).shape == (4,)
        assert library.FastpurgeClass.value.sum() == 10
        assert report.spared["library"] >= 120

    def test_switched_off_it_goes(self, library: Any) -> None:
        fastpurge.sweep(keep=(), guards=Guard.RUNNING)
        assert is_purged(library.fastpurge_value)
        assert is_purged(library.fastpurge_model)

    def test_jagged_tensors_can_be_made_after_a_sweep(self) -> None:
        # torch.nested keeps a dummy at module level, and no jagged tensor can be made without it.
        make = "torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)"
        eval(make)
        fastpurge.sweep(keep=())
        assert eval(make).is_nested

    def test_the_program_is_no_library(self, program: Any) -> None:
        program.tensor = torch.ones(3)
        program.Class = type("Class", (), {"value": torch.ones(3), "__module__": program.__name__})
        fastpurge.sweep(keep=())
        assert is_purged(program.tensor)
        assert is_purged(program.Class.value)


def _locals_after_a_sweep(how: str) -> str:
    program = f"""
import fastpurge, threading, torch
stop = threading.Event()
if {how!r} != "alone":
    threading.Thread(target=stop.wait).start()
def run():
    local = torch.ones(3)
    fastpurge.sweep(keep=(), guards=fastpurge.Guard.NONE)
    return fastpurge.is_purged(local)
print(run())
stop.set()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Hooks:
    """An object whose methods are hooks. Nothing but autograd's C++ leads to it."""

    def __init__(self) -> None:
        self.factor = torch.full((3,), 3.0)

    def node(self, grads: Any, _: Any) -> Any:
        return tuple(None if grad is None else grad * self.factor for grad in grads)

    def tensor(self, grad: torch.Tensor) -> torch.Tensor:
        return grad * self.factor

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.factor


def _hook_on_a_node(leaf: torch.Tensor) -> torch.Tensor:
    out = leaf * 2
    out.grad_fn.register_hook(Hooks().node)  # type: ignore[union-attr]
    return out.sum()


def _hook_on_a_tensor(leaf: torch.Tensor) -> torch.Tensor:
    out = leaf * 2
    out.register_hook(Hooks().tensor)
    return out.sum()


def _hooks_of_saved_tensors(leaf: torch.Tensor) -> torch.Tensor:
    hooks = Hooks()
    with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
        return leaf.exp().sum()


def _checkpoint(leaf: torch.Tensor) -> torch.Tensor:
    inner = torch.full((3,), 2.0)
    out: torch.Tensor = checkpoint(lambda x: (x * inner).exp(), leaf * 1, use_reentrant=False)
    return out.sum()


class TestCallbacks:
    """What C++ is to call some day is whole when it does."""

    @pytest.mark.parametrize(
        "make", [_hook_on_a_node, _hook_on_a_tensor, _hooks_of_saved_tensors, _checkpoint]
    )
    def test_hooks_of_a_graph_keep_what_they_lead_to(self, program: Any, make: Any) -> None:
        first, leaf = (torch.ones(3, requires_grad=True) for _ in range(2))
        make(first).backward()
        expected = first.grad.tolist()  # type: ignore[union-attr]
        program.loss = make(leaf)
        program.junk = torch.ones(3)
        fastpurge.sweep(keep=[program.loss], guards=without(Guard.RUNNING), wipe=True)
        assert is_purged(program.junk)
        program.loss.backward()
        assert leaf.grad.tolist() == expected  # type: ignore[union-attr]

    def test_hooks_of_garbage_are_garbage(self, program: Any) -> None:
        def capture(hooks: Hooks) -> Any:
            return lambda parameter: parameter.grad.mul_(hooks.factor)

        program.leaf = torch.ones(3, requires_grad=True)
        program.leaf.register_post_accumulate_grad_hook(capture(Hooks()))
        program.loss = program.leaf.sum()
        fastpurge.sweep(keep=())
        assert is_purged(program.loss)
        assert is_purged(program.leaf)

    def test_a_hook_is_told_from_another_of_the_same_code_that_runs(self, program: Any) -> None:
        def make(hooks: Hooks, sweep: bool) -> Any:
            def unpack(x: torch.Tensor) -> torch.Tensor:
                if sweep:
                    fastpurge.sweep(keep=[program.other])
                return x / hooks.factor

            return unpack

        def save(leaf: torch.Tensor, sweep: bool) -> torch.Tensor:
            hooks = Hooks()
            with torch.autograd.graph.saved_tensors_hooks(hooks.pack, make(hooks, sweep)):
                return leaf.exp().sum()

        leaf = torch.ones(3, requires_grad=True)
        program.other = save(leaf, sweep=False)
        save(torch.ones(3, requires_grad=True), sweep=True).backward()
        program.other.backward()
        assert torch.allclose(leaf.grad, torch.ones(3).exp())  # type: ignore[arg-type]

    def test_a_bound_method_in_a_local_is_not_looked_into(self, program: Any) -> None:
        class App:
            def work(self) -> None:
                pass

        program.app = App()
        program.app.cache = torch.ones(3)
        step = program.app.work
        fastpurge.sweep(keep=())
        assert is_purged(program.app.cache)
        step()

    def test_a_method_that_is_being_called_is_no_callback(self, program: Any) -> None:
        class App:
            def run(self) -> None:
                self.cache = torch.ones(3)
                fastpurge.sweep(keep=())

        program.app = App()
        thread = threading.Thread(target=program.app.run)
        thread.start()
        thread.join()
        assert is_purged(program.app.cache)

    @pytest.mark.parametrize("how", ["a tensor", "an object", "a method"])
    def test_a_hook_on_all_modules_keeps_what_it_leads_to(self, program: Any, how: str) -> None:
        class Scale:
            def __init__(self) -> None:
                self.factor = torch.full((3,), 2.0)

            def hook(self, _: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
                return out * self.factor

        def capture(held: Any) -> Any:
            return lambda _, __, out: out * (held.factor if how == "an object" else held)

        register: Any = torch.nn.modules.module.register_module_forward_hook
        handle = register(
            Scale().hook
            if how == "a method"
            else capture(Scale() if how == "an object" else torch.full((3,), 2.0))
        )
        program.model = torch.nn.Identity()
        try:
            fastpurge.sweep(keep=[program.model], guards=without(Guard.RUNNING))
            assert program.model(torch.ones(3)).tolist() == [2, 2, 2]
        finally:
            handle.remove()


class TestHandedOver:
    """Work that is handed over is running code, although it does not run now."""

    def test_a_task_that_waits_goes_on(self) -> None:
        async def work(done: asyncio.Event) -> float:
            local, nested = torch.ones(3), {"k": [torch.ones(3)]}
            await done.wait()
            return float((local + nested["k"][0]).sum())

        async def main() -> float:
            done = asyncio.Event()
            task = asyncio.get_running_loop().create_task(work(done))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(lambda x: x + 1, torch.ones(3))
            fastpurge.sweep(keep=())
            done.set()
            return await task

        assert asyncio.run(main()) == 6

    def test_a_callback_that_waits_is_called(self) -> None:
        async def main() -> list[float]:
            results: list[float] = []
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda x: results.append(float(x.sum())), torch.ones(3))
            loop.call_later(0.01, lambda x: results.append(float(x.sum())), torch.ones(4))
            fastpurge.sweep(keep=())
            await asyncio.sleep(0.1)
            return results

        assert asyncio.run(main()) == [3, 4]

    def test_a_task_that_is_done_keeps_nothing(self, program: Any) -> None:
        async def work() -> torch.Tensor:
            return torch.ones(3)

        async def main() -> bool:
            program.task = asyncio.get_running_loop().create_task(work())
            await program.task
            await asyncio.sleep(0)  # until here the event loop holds what has woken this task
            fastpurge.sweep(keep=())
            return is_purged(program.task.result())

        assert asyncio.run(main())

    def test_what_waits_for_a_pool_of_threads_is_worked_on(self) -> None:
        go = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(go.wait)
            waiting = pool.submit(torch.sum, torch.ones(3))
            fastpurge.sweep(keep=())
            go.set()
            assert waiting.result().item() == 3
            made = pool.submit(torch.ones, 3)
            made.exception()
            fastpurge.sweep(keep=())
            assert made.result().sum() == 3

    def test_what_a_queue_holds_arrives(self) -> None:
        queues: list[Any] = [queue.Queue(), queue.SimpleQueue()]
        for one in queues:
            one.put({"k": torch.ones(3)})
        fastpurge.sweep(keep=())
        assert [one.get()["k"].sum().item() for one in queues] == [3, 3]

    def test_a_forgotten_queue_does_not(self, program: Any) -> None:
        program.queue = queue.Queue()
        program.queue.put(torch.ones(3))
        fastpurge.sweep(keep=())
        assert is_purged(program.queue.get())

    def test_a_context_variable_keeps_its_value(self) -> None:
        variable: contextvars.ContextVar[torch.Tensor] = contextvars.ContextVar("variable")
        token = variable.set(torch.ones(3))
        fastpurge.sweep(keep=())
        assert variable.get().sum() == 3
        variable.reset(token)

    def test_a_custom_backward_that_runs_has_its_context(self) -> None:
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                ctx.save_for_backward(x * 3)
                ctx.factors = [x.detach() * 2]
                return x * 2

            @staticmethod
            def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
                fastpurge.sweep(keep=())
                product: torch.Tensor = grad * ctx.saved_tensors[0] * ctx.factors[0]
                return product

        x = torch.ones(3, requires_grad=True)
        Double.apply(x * 1).sum().backward()
        assert x.grad.tolist() == [6, 6, 6]  # type: ignore[union-attr]


class TestRunning:
    """Running code is not pulled out from under itself."""

    def test_locals_are_spared_with_all_they_hold(self, program: Any) -> None:
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

    def test_switched_off_they_go(self) -> None:
        held = [torch.ones(3)]
        fastpurge.sweep(keep=(), guards=without(Guard.RUNNING))
        assert is_purged(held[0])

    def test_switched_off_and_alone_those_held_directly_go_too(self) -> None:
        assert _locals_after_a_sweep("alone") == "True"

    def test_switched_off_beside_other_threads_those_held_directly_stay(self) -> None:
        # Another thread may be inside an operation on what it holds, and that would crash.
        assert _locals_after_a_sweep("beside a thread") == "False"

    def test_an_object_in_a_local_is_not_looked_into(self, program: Any) -> None:
        class Cache:
            pass

        local = Cache()
        local.value = torch.ones(3)  # type: ignore[attr-defined]
        fastpurge.sweep(keep=())
        assert is_purged(local.value)  # type: ignore[attr-defined]

    def test_what_a_closure_captures_is_spared(self) -> None:
        captured = torch.ones(3)

        def inner() -> torch.Tensor:
            return captured

        fastpurge.sweep(keep=())
        assert inner().sum() == 3

    def test_what_a_running_generator_holds_is_spared_and_a_forgotten_ones_is_not(self, program: Any) -> None:
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

    def test_what_a_running_coroutine_holds_is_spared(self) -> None:
        async def coroutine() -> float:
            local = torch.ones(3)
            fastpurge.sweep(keep=())
            return float(local.sum())

        assert asyncio.run(coroutine()) == 3

    def test_containers_derived_from_plain_ones_are_looked_through(self) -> None:
        class Output(dict[str, torch.Tensor]):
            pass

        output = Output(logits=torch.ones(3))
        largest = torch.ones(2, 3).max(dim=0)
        fastpurge.sweep(keep=())
        assert output["logits"].sum() == 3
        assert largest.values.sum() == 3

    def test_a_local_optimizer_is_kept_whole(self) -> None:
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

    def test_a_loader_that_a_loop_reads_is_kept_whole(self) -> None:
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
        # A base has an owner in C++, its view. That is not running code.
        program.base = torch.ones(100)
        program.view = program.base[:5]
        fastpurge.sweep(keep=())
        assert is_purged(program.base)
        assert is_purged(program.view)

    def test_a_base_that_only_its_view_keeps_alive_frees_its_memory(self, program: Any) -> None:
        program.view = torch.ones(100)[:5]
        fastpurge.sweep(keep=())
        gc.collect()
        assert is_purged(program.view)
        assert not [x for x in gc.get_objects() if type(x) is torch.Tensor and x.shape == (100,)]

    def test_a_finished_exception_is_let_go_and_one_being_handled_is_not(self, program: Any) -> None:
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


class TestAlias:
    """What a guard spares protects the memory it stands on, like what was named."""

    def test_memory_of_a_spared_local_is_spared(self, program: Any) -> None:
        program.tensor = torch.ones(10)
        # On the same storage, and no view: C++ ties the two together in no other way.
        local = torch.empty(0).set_(program.tensor.untyped_storage())
        report = fastpurge.sweep(keep=(), wipe=True)
        assert program.tensor.sum() == 10
        assert local.sum() == 10
        assert report.spared["alias"] >= 40


@pytest.mark.parametrize("guard", list(Guard))
def test_every_guard_has_a_docstring_and_a_name(guard: Guard) -> None:
    assert guard.name
    assert guard in Guard.ALL


def test_guards_are_not_asked_when_nothing_is_there_to_spare(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastpurge import guards

    fastpurge.sweep(keep=(), guards=Guard.NONE)
    monkeypatch.setattr(guards, "library_state", lambda _: pytest.fail("asked"))
    monkeypatch.setattr(guards, "outside", lambda: pytest.fail("asked"))
    fastpurge.sweep(keep=(), min_bytes=1 << 40)
