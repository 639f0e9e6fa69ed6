"""Torch modes and recorders do not see the calls of a sweep, and continue after it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import is_purged
from fastpurge.torch_facts.recorders import Unrecorded
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.usefixtures("small_heap")


class Logging(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class LoggingFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def _failing() -> BaseException:
    def fail() -> None:
        lost = torch.ones(60)
        raise ValueError(torch.ones(61), lost)

    try:
        fail()
    except ValueError as error:
        return error
    raise AssertionError


@pytest.fixture
def forgotten(program: Any) -> Any:
    program.referent = [
        torch.ones(1000),
        torch.ones(3, 4).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        _failing(),
    ]
    program.leak = torch.nn.Linear(8, 8)
    return program


def _call_all(x: Any, program: Any, *keep: Any) -> None:
    """All public functions that read torch objects."""
    kept = [x, *keep]
    fastpurge.census()
    fastpurge.why(x, program.referent[0])
    fastpurge.trim()
    fastpurge.let_go(program.referent[3], keep=kept)
    assert not is_purged(x)
    assert fastpurge.plan(keep=kept, devices="cpu").nbytes
    fastpurge.plan(keep=kept, min_bytes=3000).apply()
    assert is_purged(program.referent[0])
    report = fastpurge.sweep(keep=kept, wipe=True)
    assert is_purged(program.leak)
    assert [item for item in report.released if item.reason] == []


@pytest.mark.parametrize("mode_type", [Logging, LoggingFunctions])
def test_a_torch_mode_of_the_program_sees_no_call_of_a_sweep(mode_type: Any, forgotten: Any) -> None:
    with mode_type() as mode:
        x = torch.ones(4) + 1
        del mode.seen[:]
        _call_all(x, forgotten, mode)
        assert mode.seen == []
        assert (x * 2).tolist() == [4.0] * 4
    assert len(mode.seen) > 0


def test_flops_are_counted_as_without_a_sweep(forgotten: Any) -> None:
    model, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with FlopCounterMode(display=False) as counter:
        y = model(x)
        _call_all(y, forgotten, model, x, counter)
        model(x)
    assert counter.get_total_flops() == 2 * (2 * 2 * 4 * 4)


def test_fake_tensors_are_unchanged_and_real_ones_are_wiped(forgotten: Any) -> None:
    with FakeTensorMode() as mode:
        x = torch.ones(4, 5)
        _call_all(x, forgotten, mode)
        y = x @ x.T
        assert type(y) is type(x) is not torch.Tensor
        assert y.shape == (4, 4)


@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_make_fx_records_the_same(tracing: Any, pre_dispatch: Any, forgotten: Any) -> None:
    def traced(call: Callable[[Any], object]) -> str:
        def function(x: torch.Tensor) -> torch.Tensor:
            y = x.cos() * x.shape[0]
            call(y)
            return y.sin() + torch.ones(3)

        graph = make_fx(function, tracing_mode=tracing, pre_dispatch=pre_dispatch)(torch.ones(3))
        return graph.code

    expected = traced(lambda _: None)
    assert traced(lambda y: _call_all(y, forgotten)) == expected


def _vmapped(call: Callable[[Any], object]) -> Any:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.cos()
        call(y)
        return y.sum()

    return torch.func.vmap(function)(torch.ones(3, 4))


def _differentiated(call: Callable[[Any], object]) -> Any:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.cos()
        call(y)
        return y.sum()

    return torch.func.grad(lambda x: torch.func.grad(function)(x).sum())(torch.ones(3))


def _forward_mode(call: Callable[[Any], object]) -> Any:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.cos()
        call(y)
        return y * 2

    return torch.stack(torch.func.jvp(function, (torch.ones(3),), (torch.ones(3),)))


def _functionalized(call: Callable[[Any], object]) -> Any:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.cos()
        call(y)
        return y.add_(1)

    return torch.func.functionalize(function)(torch.ones(3))


@pytest.mark.parametrize("transform", [_vmapped, _differentiated, _forward_mode, _functionalized])
def test_a_functorch_transform_computes_the_same(transform: Any, forgotten: Any) -> None:
    expected = transform(lambda _: None)
    met = []

    def call(y: Any) -> None:
        _call_all(y, forgotten, expected)
        met.append(1)

    assert torch.equal(transform(call), expected)
    assert met == [1]


def test_the_profiler_continues(forgotten: Any) -> None:
    x = torch.ones(4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        x.cos()
        _call_all(x, forgotten, profiler)
        x.sin()
    recorded = [event.key for event in profiler.key_averages()]
    assert "aten::cos" in recorded
    assert "aten::sin" in recorded


def _refuse(what: object) -> Any:
    raise AssertionError(what)


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.device("meta"),
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.autograd.graph.saved_tensors_hooks(_refuse, _refuse),
        torch.autograd.detect_anomaly,
    ],
    ids=["default device", "inference", "no_grad", "autocast", "saved tensors", "anomalies"],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_context_of_torch_does_not_change_what_a_sweep_does(
    context: Callable[[], AbstractContextManager[Any]], forgotten: Any
) -> None:
    with context():
        x = torch.ones(4, device="cpu")
        _call_all(x, forgotten)
    assert x.sum() == 4


def test_fx_tracing_records_nothing_of_a_call(forgotten: Any) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            y = x.relu()
            fastpurge.plan(keep=y)
            return y + 1

    assert [node.name for node in torch.fx.symbolic_trace(Model()).graph.nodes][1:3] == ["relu", "add"]


# Suspended modes are restored


@contextmanager
def _everything() -> Iterator[list[Any]]:
    functions, first, second = LoggingFunctions(), Logging(), Logging()
    with first, functions, FakeTensorMode() as fake, second:
        yield [first, second, fake, functions]


def _stacks() -> list[Any]:
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return [*_get_current_dispatch_mode_stack(), *_get_current_function_mode_stack()]


def test_modes_are_restored_in_order_after_any_exception() -> None:
    with _everything():
        before = _stacks()
        assert len(before) >= 4
        with suppress(KeyboardInterrupt), Unrecorded(), Unrecorded():
            assert _stacks() == []
            raise KeyboardInterrupt
        assert all(a is b for a, b in zip(before, _stacks(), strict=True))
        with pytest.raises(TypeError, match="label"):
            fastpurge.sweep(keep=(), label=1)  # type: ignore[arg-type]
        assert all(a is b for a, b in zip(before, _stacks(), strict=True))


def test_the_contents_of_a_suspended_mode_are_in_use() -> None:
    class Collecting(Logging):
        def __init__(self) -> None:
            super().__init__()
            self.made = [torch.ones(70)]

    def enter() -> None:
        Collecting().__enter__()

    gc.unfreeze()  # what is frozen counts as held by C code, and the list of suspended modes is
    before = len(_stacks())
    enter()
    try:
        fastpurge.sweep(keep=())
    finally:
        mode: Any = torch.utils._python_dispatch._get_current_dispatch_mode()
        mode.__exit__(None, None, None)
    assert len(_stacks()) == before
    assert mode.made[0].sum() == 70


def test_a_finalizer_inside_a_sweep_can_compute_with_tensor_subclasses(program: Any) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    said = []

    class Model(torch.nn.Module):
        def __del__(self) -> None:
            said.append(kept + kept)

    kept: Any = TwoTensor(torch.ones(3), torch.ones(3))
    program.model = Model()
    fastpurge.sweep(keep=[kept, Model])
    assert is_purged(program.model)
    assert [type(one) for one in said] == [TwoTensor]
    assert said[0].a.tolist() == [2.0] * 3
