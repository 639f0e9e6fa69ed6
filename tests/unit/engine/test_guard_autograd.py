"""`Guard.AUTOGRAD` spares the tensors that a graph in use refers to in C++."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import fastpurge
import fastpurge.torch_facts.hidden_references
import pytest
import torch
from fastpurge import Guard, is_purged
from torch.utils.checkpoint import checkpoint

# Otherwise saved tensors become tombstones, and backward reads the values in C++ all the same.
SHOWS_SAVED = hasattr(torch._C._autograd.SavedTensor, "data")


class TestAutograd:
    """Backward gives the same gradients after a sweep, and the tensors of its graph stay usable."""

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
        # `backward` writes into the leaves: they are no tombstones.
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
        if SHOWS_SAVED:
            assert program.squared.tolist() == [1, 1, 1]

    def test_without_the_guard_leaves_become_tombstones_and_the_gradients_stay_right(
        self, program: Any
    ) -> None:
        program.leaf = torch.ones(3, requires_grad=True)
        loss = (program.leaf**2).sum()
        grads: list[torch.Tensor] = []
        program.leaf.register_hook(lambda grad: grads.append(grad.clone()))
        fastpurge.sweep(keep=[loss, grads], guards=Guard.ALL & ~Guard.AUTOGRAD & ~Guard.RUNNING, wipe=True)
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

    def test_a_graph_freed_by_backward_can_be_kept(self, program: Any) -> None:
        program.leaf = torch.ones(3, requires_grad=True)
        loss = (program.leaf**2).sum()
        loss.backward()
        fastpurge.sweep(keep=[loss])
        assert program.leaf.grad.tolist() == [2, 2, 2]

    def test_a_hook_of_a_node_keeps_what_it_captured(self, program: Any) -> None:
        program.leaf = torch.ones(3, requires_grad=True)
        program.captured = torch.tensor([5.0, 5.0, 5.0])
        loss = (program.leaf**2).sum()

        def add_hook(referent: torch.Tensor) -> None:
            loss.grad_fn.next_functions[0][0].register_prehook(lambda grads: (grads[0] * referent,))

        add_hook(program.captured)
        fastpurge.sweep(keep=[loss])
        loss.backward()
        assert program.leaf.grad.tolist() == [10, 10, 10]


@contextmanager
def backward_under_way() -> Iterator[None]:
    """A backward under way in another thread."""
    arrived, leave = threading.Event(), threading.Event()

    def stay(_: torch.Tensor) -> None:
        arrived.set()
        leave.wait()

    def work() -> None:
        x = torch.ones(3, requires_grad=True)
        y = x * 2
        y.register_hook(stay)
        y.sum().backward()

    thread = threading.Thread(target=work)
    thread.start()
    arrived.wait()
    try:
        yield
    finally:
        leave.set()
        thread.join()


class TestBackwardOfAnotherThread:
    """A backward releases the GIL and frees saved tensors, so that no other thread may read them."""

    def test_nothing_is_released_beside_a_kept_graph_until_the_backward_is_over(self, program: Any) -> None:
        program.x = torch.ones(3)
        program.forgotten = torch.ones(10)
        weight = torch.ones(3, requires_grad=True)
        loss = (weight * program.x).sum()
        with backward_under_way():
            report = fastpurge.sweep(keep=[loss])
            assert not report.released
            assert {item.reason for item in report.skipped} == {
                "another thread is inside a backward: kept graphs cannot be read"
            }
        fastpurge.sweep(keep=[loss])
        assert is_purged(program.forgotten)
        loss.backward()
        assert weight.grad is not None
        assert weight.grad.tolist() == [1, 1, 1]

    def test_without_a_kept_graph_a_backward_blocks_no_release(self, program: Any) -> None:
        program.forgotten = torch.ones(10)
        weight = torch.ones(3, requires_grad=True)
        with backward_under_way():
            fastpurge.sweep(keep=[weight])
        assert is_purged(program.forgotten)

    @pytest.mark.parametrize("guards", [Guard.ALL, Guard.NONE])
    def test_gradients_of_kept_tensors_stay(self, program: Any, guards: Guard) -> None:
        program.forgotten = torch.ones(10)
        weight = torch.ones(3, requires_grad=True)
        (weight * 2).sum().backward()
        assert weight.grad is not None  # this creates its Python object
        with backward_under_way():
            fastpurge.sweep(keep=[weight], guards=guards)
        assert is_purged(program.forgotten)
        assert weight.grad.tolist() == [2, 2, 2]

    @pytest.mark.parametrize("part", [slice(None), slice(1, 2)])
    def test_nothing_is_released_if_the_backward_pauses_during_the_owner_check(
        self, program: Any, monkeypatch: pytest.MonkeyPatch, part: slice
    ) -> None:
        weight = torch.ones(3, requires_grad=True)
        (weight * 2).sum().backward()
        program.gradient = weight.grad
        program.view = program.gradient[part]
        program.forgotten = torch.ones(10)
        ask = fastpurge.torch_facts.hidden_references.owned_in_cpp
        asked: list[bool] = []

        def between_two_backwards(*owners: Any) -> Iterator[object]:
            backward.close()
            asked.append(True)
            yield from ask(*owners)
            backward.enter_context(backward_under_way())

        monkeypatch.setattr(fastpurge.torch_facts.hidden_references, "owned_in_cpp", between_two_backwards)
        with ExitStack() as backward:
            backward.enter_context(backward_under_way())
            fastpurge.sweep(keep=[weight])
        assert asked
        assert is_purged(program.forgotten)
        assert program.gradient.tolist() == [2, 2, 2]

    def test_possible_gradients_stay_until_the_backward_is_over(self, program: Any) -> None:
        program.view = torch.ones(1000)[:1]  # the view refers to its base in C++
        with backward_under_way():
            report = fastpurge.sweep(keep=[torch.ones(1)])
        assert is_purged(program.view)
        assert [item.shape for item in report.skipped] == [(1000,)]
        assert "may be a gradient" in str(report.skipped[0].reason)

    def test_an_unprotected_graph_in_use_is_not_read(self, program: Any) -> None:
        class Box:
            pass

        program.box = Box()
        saved = torch.ones(3)
        program.box.value = torch.ones(3, requires_grad=True) * saved
        program.forgotten = torch.ones(10)
        del saved
        with backward_under_way():
            fastpurge.sweep(keep=())
            assert is_purged(program.forgotten)
        fastpurge.sweep(keep=())
        assert is_purged(program.box.value)


class Hooks:
    """An object whose methods are hooks. Only autograd's C++ refers to it."""

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


class Unpack:
    """A callable instance: C++ refers to it as to a function."""

    def __init__(self) -> None:
        self.factor = torch.full((3,), 3.0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.factor


def _instance_that_unpacks(leaf: torch.Tensor) -> torch.Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x * 3, Unpack()):
        return leaf.exp().sum()


def _checkpoint(leaf: torch.Tensor) -> torch.Tensor:
    inner = torch.full((3,), 2.0)
    out: torch.Tensor = checkpoint(lambda x: (x * inner).exp(), leaf * 1, use_reentrant=False)
    return out.sum()


class TestCallbacks:
    """Callbacks that C++ will call keep their objects."""

    @pytest.mark.parametrize(
        "make",
        [
            _hook_on_a_node,
            _hook_on_a_tensor,
            _hooks_of_saved_tensors,
            pytest.param(
                _instance_that_unpacks,
                marks=pytest.mark.skipif(
                    not hasattr(torch._C._autograd.SavedTensor, "unpack_hook"),
                    reason="this torch shows no hook that unpacks (docs/limits.md)",
                ),
            ),
            pytest.param(_checkpoint, marks=pytest.mark.imports_much),
        ],
    )
    def test_hooks_of_a_graph_keep_everything_reachable_from_them(self, program: Any, make: Any) -> None:
        first, leaf = (torch.ones(3, requires_grad=True) for _ in range(2))
        make(first).backward()
        expected = first.grad.tolist()  # type: ignore[union-attr]
        program.loss = make(leaf)
        program.junk = torch.ones(3)
        fastpurge.sweep(keep=[program.loss], guards=Guard.ALL & ~Guard.RUNNING, wipe=True)
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

    def test_a_hook_is_distinguished_from_a_running_one_of_the_same_code(self, program: Any) -> None:
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

    def test_a_bound_method_in_a_local_is_not_traversed(self, program: Any) -> None:
        class App:
            def work(self) -> None:
                pass

        program.app = App()
        program.app.cache = torch.ones(3)
        step = program.app.work
        fastpurge.sweep(keep=())
        assert is_purged(program.app.cache)
        step()

    def test_a_method_under_call_is_no_callback(self, program: Any) -> None:
        class App:
            def run(self) -> None:
                self.cache = torch.ones(3)
                fastpurge.sweep(keep=())

        program.app = App()
        thread = threading.Thread(target=program.app.run)
        thread.start()
        thread.join()
        assert is_purged(program.app.cache)
