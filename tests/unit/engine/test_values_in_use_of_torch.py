"""Values that torch will compute with survive a sweep: graphs, their hooks, transforms and traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from tests.unit.engine.values_in_use import four, sweep, through, total


def leaf() -> torch.Tensor:
    return torch.ones(4, requires_grad=True)


def adds_to(totals: list[float]) -> Callable[..., None]:
    """A callback that alone refers to its tensor."""
    value = four()
    return lambda *_, **__: totals.append(total(value))


class Adds:
    """The same as a bound method of an object."""

    def __init__(self, totals: list[float]) -> None:
        self.value, self.totals = four(), totals

    def call(self, *_: object, **__: object) -> None:
        self.totals.append(total(self.value))


def _selective() -> Any:
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    return create_selective_checkpoint_contexts([torch.ops.aten.mm.default])


class TestGraphs:
    @pytest.mark.imports_much
    @pytest.mark.parametrize(
        "options",
        [
            {"use_reentrant": False},
            {"use_reentrant": True},
            {"use_reentrant": False, "context_fn": _selective},
        ],
        ids=["without reentry", "reentrant", "selective"],
    )
    def test_a_checkpoint_recomputes_with_the_values_it_captured(self, options: Any) -> None:
        from torch.utils.checkpoint import checkpoint

        def made() -> tuple[torch.Tensor, torch.Tensor]:
            x, scale, eye = torch.ones(4, 4, requires_grad=True), torch.full((4, 4), 2.0), torch.eye(4)
            return x, checkpoint(lambda x: ((x @ eye) * scale).pow(2), x, **options)

        x, y = made()
        sweep()
        y.sum().backward()
        assert total(x.grad) == 16 * 8

    @pytest.mark.imports_much
    def test_a_checkpoint_of_a_sequence_recomputes_with_its_layers(self) -> None:
        from torch.utils.checkpoint import checkpoint_sequential

        class Doubles(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.factor = torch.full((4,), 2.0)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * self.factor

        def made() -> tuple[torch.Tensor, torch.Tensor]:
            x, layers = leaf(), torch.nn.Sequential(*(Doubles() for _ in range(4)))
            return x, checkpoint_sequential(layers, 2, x, use_reentrant=False)

        x, y = made()
        sweep()
        y.sum().backward()
        assert total(x.grad) == 4 * 2**4

    @pytest.mark.imports_much
    def test_a_recomputation_that_sweeps_gives_the_right_gradients(self) -> None:
        from torch.utils.checkpoint import checkpoint

        weight = leaf()

        def square(x: torch.Tensor) -> torch.Tensor:
            parts = [x * weight]
            sweep()
            return parts[0] * parts[0]

        y = checkpoint(square, leaf(), use_reentrant=False)
        checkpoint(square, y, use_reentrant=False).sum().backward()
        assert total(weight.grad) == 4 * 6  # of weight ** 6

    def test_hooks_that_pack_into_containers_keep_what_they_packed(self) -> None:
        def made() -> tuple[torch.Tensor, torch.Tensor]:
            weight, factor = leaf(), torch.full((4,), 2.0)
            with torch.autograd.graph.saved_tensors_hooks(
                lambda x: [x.clone(), {"factor": factor}], lambda packed: packed[0] * packed[1]["factor"]
            ):
                return weight, weight.exp().sum()

        weight, y = made()
        sweep()
        y.backward()
        assert total(weight.grad) == pytest.approx(8 * torch.e)

    def test_hooks_that_sweep_while_they_pack_and_unpack_lose_nothing(self) -> None:
        weight = leaf()

        def pack(x: torch.Tensor) -> Any:
            return through((x.clone(),))

        def unpack(packed: Any) -> Any:
            return through(packed)[0]

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            y = weight.exp().sum()
        y.backward()
        assert total(weight.grad) == pytest.approx(4 * torch.e)

    def test_a_hook_that_sweeps_in_a_backward_changes_no_gradient(self) -> None:
        weight = leaf()
        product = weight * 2
        product.register_hook(lambda grad: through(grad * 3))
        (product * product).sum().backward()
        assert total(weight.grad) == 4 * 2 * 3 * 4

    def test_hooks_of_several_gradients_keep_their_values(self) -> None:
        totals: list[float] = []

        def made() -> tuple[torch.Tensor, torch.Tensor]:
            weight = leaf()
            pair = weight * 2, weight * 3
            torch.autograd.graph.register_multi_grad_hook(pair, adds_to(totals))
            return weight, (pair[0] + pair[1]).sum()

        weight, y = made()
        sweep()
        y.backward()
        assert (totals, total(weight.grad)) == ([4], 20)

    @pytest.mark.parametrize("hook", [adds_to, lambda totals: Adds(totals).call], ids=["closure", "method"])
    def test_a_hook_after_the_accumulation_of_a_gradient_keeps_its_value(self, hook: Any) -> None:
        totals: list[float] = []
        weight = leaf()
        weight.register_post_accumulate_grad_hook(hook(totals))
        sweep()
        weight.sum().backward()
        assert totals == [4]

    def test_dual_tensors_keep_their_tangents(self, program: Any) -> None:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(four(), torch.full((4,), 3.0))
            program.tangent = forward_ad.unpack_dual(dual).tangent
            sweep()
            tangent = forward_ad.unpack_dual(dual * 2).tangent
        assert total(tangent) == 24


class TestTransforms:
    """`torch.func`, with a sweep while the transform is under way or before its result is called."""

    @pytest.mark.parametrize(
        ("transform", "expected"),
        [
            (lambda f: torch.func.vmap(f)(torch.ones(3, 4)), 24),
            (lambda f: torch.func.grad(f)(four()), 16),
            (lambda f: torch.stack(torch.func.jvp(f, (four(),), (four(),))), 8 + 16),
            (lambda f: torch.func.grad(lambda x: torch.func.grad(f)(x).sum())(four()), 16),
            (lambda f: torch.func.vmap(torch.func.grad(f))(torch.ones(3, 4)), 48),
            (lambda f: torch.func.jacrev(f)(four()), 16),
        ],
        ids=["vmap", "grad", "jvp", "grad of grad", "vmap of grad", "jacrev"],
    )
    def test_a_function_under_a_transform_keeps_its_locals(
        self, transform: Any, expected: float, program: Any
    ) -> None:
        def function(x: torch.Tensor) -> torch.Tensor:
            parts = [x * 2]
            program.forgotten = x.sin()
            sweep()
            return (parts[0] * x).sum()

        assert total(transform(function)) == expected

    def test_a_hessian_is_complete_if_the_function_sweeps(self) -> None:
        def cube(x: torch.Tensor) -> torch.Tensor:
            parts = [x * x]
            sweep()
            return (parts[0] * x).sum()

        assert total(torch.func.hessian(cube)(torch.ones(3))) == 18

    @pytest.mark.parametrize("name", ["vjp", pytest.param("linearize", marks=pytest.mark.imports_much)])
    def test_derivatives_that_are_called_later_keep_their_values(self, name: str) -> None:
        def made() -> Any:
            factor = torch.full((4,), 2.0)
            return getattr(torch.func, name)(lambda x: (x * factor).pow(2), four())[1]

        derivative = made()
        sweep()
        assert total(torch.cat([*derivative(four())] if name == "vjp" else [derivative(four())])) == 32

    @pytest.mark.imports_much
    def test_a_trace_in_progress_records_its_constants(self) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        def function(x: torch.Tensor) -> torch.Tensor:
            parts = [x * 2, torch.ones(4)]
            sweep()
            return parts[0] + parts[1]

        assert total(make_fx(function)(four())(four())) == 12

    @pytest.mark.imports_much
    def test_an_exported_program_keeps_its_constants(self) -> None:
        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.constant = torch.full((4,), 2.0)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * self.constant + torch.ones(4)

        exported = torch.export.export(Model(), (four(),))
        sweep()
        assert total(exported.module()(four())) == 12

    def test_an_interpreter_whose_method_is_replaced_computes_the_same(self) -> None:
        def made(traced: Any) -> Any:
            interpreter: Any = torch.fx.Interpreter(traced)
            interpreter.call_function = lambda target, args, kwargs: through(target)(*args, **kwargs)
            return interpreter

        traced = torch.fx.symbolic_trace(lambda x: (x * 2) * (x + 1))
        assert total(made(traced).run(four())) == 16
