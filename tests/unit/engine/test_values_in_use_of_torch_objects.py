"""Values that objects of torch will use survive a sweep: optimizers, modules, modes, futures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.engine.values_in_use import four, sweep, through, total


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


class TestOptimizers:
    @pytest.mark.imports_much
    def test_a_closure_that_sweeps_does_not_disturb_lbfgs(self) -> None:
        def trained(then: Callable[[], None]) -> list[float]:
            weight = torch.nn.Parameter(four())
            optimizer = torch.optim.LBFGS([weight], lr=0.1, max_iter=2, line_search_fn="strong_wolfe")

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = (weight - 3).pow(4).sum()
                loss.backward()
                then()
                return loss

            optimizer.step(closure)
            return weight.tolist()

        assert trained(sweep) == trained(lambda: None)

    @pytest.mark.imports_much
    def test_hooks_of_an_optimizer_keep_their_values(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        totals: list[float] = []
        weight = torch.nn.Parameter(four())
        optimizer = torch.optim.SGD([weight], lr=0.5)
        optimizer.register_step_pre_hook(adds_to(totals))
        optimizer.register_step_post_hook(Adds(totals).call)
        handle = register_optimizer_step_pre_hook(Adds(totals).call)
        try:
            sweep()
            weight.sum().backward()
            optimizer.step()
        finally:
            handle.remove()
        assert (totals, total(weight)) == ([4] * 3, 2)

    def test_a_schedule_of_learning_rates_that_sweeps_keeps_its_value(self) -> None:
        class Schedule(torch.optim.lr_scheduler.LRScheduler):
            def __init__(self, optimizer: Any) -> None:
                self.value = four()
                super().__init__(optimizer)

            def get_lr(self) -> list[float | torch.Tensor]:
                sweep()
                return [total(self.value) / 8]

        weight = torch.nn.Parameter(four())
        optimizer = torch.optim.SGD([weight], lr=1)
        Schedule(optimizer)
        weight.sum().backward()
        optimizer.step()
        assert total(weight) == 2

    def test_a_scaler_of_gradients_keeps_its_scale(self) -> None:
        weight = torch.nn.Parameter(four())
        optimizer = torch.optim.SGD([weight], lr=0.5)
        scaler = vars(torch.amp)["GradScaler"]("cpu")
        scaler.scale(weight.sum()).backward()
        sweep()
        scaler.unscale_(optimizer)
        sweep()
        scaler.step(optimizer)
        scaler.update()
        assert total(weight) == 2


class TestModules:
    @pytest.mark.imports_much
    def test_an_averaged_model_keeps_the_values_of_its_function(self) -> None:
        def adding(value: torch.Tensor) -> Any:
            return lambda averaged, _, __: averaged + value

        model = torch.nn.Linear(4, 1, bias=False)
        averaged: Any = torch.optim.swa_utils.AveragedModel(model, avg_fn=adding(four()))
        averaged.update_parameters(model)
        sweep()
        averaged.update_parameters(model)
        assert total(averaged.module.weight - model.weight) == pytest.approx(4)

    @pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
    def test_a_cached_parametrization_is_the_same_after_a_sweep(self, name: str) -> None:
        model = getattr(parametrizations, name)(torch.nn.Linear(4, 4)).eval()
        expected = total(model.weight)
        with parametrize.cached():
            before = id(model.weight)  # only the cache refers to it
            sweep()
            assert id(model.weight) == before
            assert total(model.weight) == pytest.approx(expected)

    def test_a_batch_of_an_iterator_of_the_program_is_complete(self) -> None:
        class Batches:
            def __init__(self) -> None:
                self.rest = [four() for _ in range(4)]

            def __iter__(self) -> Batches:
                return self

            def __next__(self) -> torch.Tensor:
                if not self.rest:
                    raise StopIteration
                return self.rest.pop()

        class Data(torch.utils.data.IterableDataset[torch.Tensor]):
            def __iter__(self) -> Iterator[torch.Tensor]:
                return Batches()

        loader: Any = torch.utils.data.DataLoader(Data(), batch_size=2)
        assert [total(through(batch)) for batch in loader] == [8, 8]

    @pytest.mark.parametrize("mode", ["functions", "operators"])
    def test_a_mode_that_sweeps_in_each_call_keeps_its_value(self, mode: str) -> None:
        totals: list[float] = []

        class Functions(TorchFunctionMode):
            def __init__(self) -> None:
                super().__init__()
                self.value = four()

            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                sweep()
                totals.append(total(self.value))
                return func(*args, **(kwargs or {}))

        class Operators(TorchDispatchMode):
            def __init__(self) -> None:
                super().__init__()
                self.value = four()

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                sweep()
                totals.append(total(self.value))
                return func(*args, **(kwargs or {}))

        with Functions() if mode == "functions" else Operators():
            torch.ones(2)
        assert {*totals} == {4}

    def test_a_node_of_a_tree_is_flattened_with_the_values_of_its_function(self) -> None:
        from torch.utils import _pytree

        class Branch: ...

        def register(value: torch.Tensor) -> None:
            _pytree.register_pytree_node(Branch, lambda _: ([total(value)], None), lambda leaves, _: Branch())

        register(four())
        sweep()
        assert _pytree.tree_flatten([Branch()])[0] == [4]


class TestFutures:
    def test_callbacks_and_results_of_a_future_keep_their_values(self, program: Any) -> None:
        def added(value: torch.Tensor) -> Any:
            return lambda done: [value + done.value()[0]]

        program.future = torch.futures.Future()
        program.second = program.future.then(added(four()))
        sweep()
        program.future.set_result([four()])
        sweep()
        assert total(program.second.value()[0]) == 8
