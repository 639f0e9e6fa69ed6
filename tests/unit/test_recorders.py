"""What is called while torch traces, records or intercepts leaves no trace, and is not intercepted."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import is_purged
from fastpurge.recorders import Unrecorded
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

PROGRAM = """
import re, sys, torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        y = self.linear(x).relu()
        call(y)
        return y.reshape(y.shape[0], -1) + 1

def fail():
    lost = torch.ones(60)
    raise ValueError(torch.ones(61))

def forget():
    global HELD, ERROR
    HELD = [torch.ones(50, requires_grad=True) * 2, torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()]
    try:
        fail()
    except ValueError as error:
        ERROR = error

torch.manual_seed(0)
model, x = Model(), torch.ones(2, 4)
KEPT = [model, x]
"""

CALLS = """
import fastpurge

def safe_point():
    with fastpurge.safe_point():
        pass

CALLS = {
    "nothing": lambda y: None,
    "plan": lambda y: fastpurge.plan(keep=[y], devices="cpu"),
    "census": lambda y: fastpurge.census(),
    "why": lambda y: fastpurge.why(HELD[0], y),
    "trim": lambda y: fastpurge.trim(),
    "is_purged": lambda y: fastpurge.is_purged(y),
    "let_go": lambda y: fastpurge.let_go(ERROR),
    "watch": lambda y: fastpurge.watch(above="99.9%", keep=lambda: y).stop(),
    "safe_point": lambda y: safe_point(),
    "apply": lambda y: fastpurge.plan(keep=[y, KEPT, CALLS]).apply(),
    "sweep": lambda y: fastpurge.sweep(keep=[y, KEPT, CALLS], wipe=True),
}

results = {}
for name, call in CALLS.items():
    print(name, file=sys.stderr)  # the last one is what has ended the process
    forget()
    results[name] = result()
    assert fastpurge.is_purged(HELD[0]) is (name in ("apply", "sweep"))
assert {name: said for name, said in results.items() if said != results["nothing"]} == {}, results
"""


def run(*parts: str) -> None:
    """Run a program in a process of its own."""
    program = "\n".join(textwrap.dedent(part) for part in parts)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


TRACED = """
def result():
    traced = torch.jit.trace(model, x, check_trace=False)
    assert torch.equal(traced(x), model(x))
    return re.sub(r"___torch_mangle_\\d+\\.", "", str(traced.graph))
"""


def test_a_call_while_torch_traces_is_not_in_the_graph() -> None:
    run(PROGRAM, TRACED, CALLS)


def test_a_call_while_torch_exports_to_onnx_is_not_in_the_graph() -> None:
    if not importlib.util.find_spec("onnx"):
        pytest.skip("needs onnx")
    exported = """
    import io

    def result():
        file = io.BytesIO()
        torch.onnx.export(model, (x,), file, dynamo=False)
        return file.getvalue()
    """
    run(PROGRAM, exported, CALLS)


def test_the_first_import_while_torch_traces_is_not_in_the_graph() -> None:
    # The package asks torch some questions once.
    late = """
    def call(y):
        pass

    expected = result()
    assert "fastpurge.tensors" not in sys.modules

    def call(y):
        import fastpurge
        fastpurge.plan(keep=y)

    assert result() == expected
    """
    run(PROGRAM, TRACED, late)


def test_a_compiled_function_calls_a_sweep_as_it_is() -> None:
    # With a break in the graph where the call is, and nothing of the package compiled.
    compiled = """
    import torch._dynamo

    def result():
        torch._dynamo.reset()
        graphs = []

        def backend(graph, inputs):
            graphs.append([node.name for node in graph.graph.nodes])
            return graph.forward

        f = torch.compile(model, backend=backend)
        assert torch.equal(f(x), model(x)) and torch.equal(f(x), model(x))
        return graphs

    def call(y):
        torch._dynamo.graph_break()

    forget()
    expected = result()
    """
    calls = CALLS.replace("lambda y: None", "call")
    # It reads nothing of torch, and is compiled.
    calls = calls.replace('    "is_purged": lambda y: fastpurge.is_purged(y),\n', "")
    run(PROGRAM, compiled, calls, "assert results['nothing'] == expected")


def test_sweeps_go_on_after_one_in_a_compiled_function() -> None:
    after = """
    import fastpurge

    @torch.compile(backend="eager")
    def f(x):
        y = x + 1
        fastpurge.sweep(keep=[x, y])
        return y * 2

    for _ in range(3):
        forget()
        assert f(x).unique().item() == 4
        fastpurge.plan(keep=())
        forget()
        fastpurge.sweep(keep=[x, f])
        assert fastpurge.is_purged(HELD[0])
    """
    run(PROGRAM, after)


def test_a_plan_does_not_import_the_compiler() -> None:
    run("import sys, fastpurge", "fastpurge.plan(keep=())", "assert 'torch._dynamo' not in sys.modules")


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
    program.held = [torch.ones(1000), torch.ones(3, 4).to_sparse(), torch.eye(3).to_sparse_csr(), _failing()]
    program.leak = torch.nn.Linear(8, 8)
    return program


def _call_all(x: Any, program: Any, *keep: Any) -> None:
    """Everything that is public and reads torch."""
    kept = [x, *keep]
    fastpurge.census()
    fastpurge.why(x, program.held[0])
    fastpurge.trim()
    fastpurge.let_go(program.held[3], keep=kept)
    assert not is_purged(x)
    assert fastpurge.plan(keep=kept, devices="cpu").nbytes
    fastpurge.plan(keep=kept, min_bytes=3000).apply()
    assert is_purged(program.held[0])
    report = fastpurge.sweep(keep=kept, wipe=True)
    assert is_purged(program.leak)
    assert [item for item in report.released if item.reason] == []


@pytest.mark.parametrize("mode_type", [Logging, LoggingFunctions])
def test_a_mode_of_the_program_is_asked_nothing(mode_type: Any, forgotten: Any) -> None:
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


def test_fake_tensors_are_as_before_and_real_ones_are_wiped(forgotten: Any) -> None:
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
def test_a_transform_computes_the_same(transform: Any, forgotten: Any) -> None:
    expected = transform(lambda _: None)
    met = []

    def call(y: Any) -> None:
        _call_all(y, forgotten, expected)
        met.append(1)

    assert torch.equal(transform(call), expected)
    assert met == [1]


def test_the_profiler_goes_on(forgotten: Any) -> None:
    x = torch.ones(4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        x.cos()
        _call_all(x, forgotten, profiler)
        x.sin()
    told = [event.key for event in profiler.key_averages()]
    assert "aten::cos" in told
    assert "aten::sin" in told


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


def test_the_default_device_stays_and_is_not_used_by_a_sweep() -> None:
    run(
        "import torch",
        "torch.set_default_device('meta')",
        "import fastpurge",
        "held = [torch.ones(9, device='cpu')]",
        "fastpurge.sweep(keep=(), wipe=True)",
        "assert fastpurge.is_purged(held[0])",
        "assert torch.ones(2).device.type == 'meta'",
    )


def test_fx_sees_nothing_of_a_call(forgotten: Any) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            y = x.relu()
            fastpurge.plan(keep=y)
            return y + 1

    assert [node.name for node in torch.fx.symbolic_trace(Model()).graph.nodes][1:3] == ["relu", "add"]


# What is suspended comes back


@contextmanager
def _everything() -> Iterator[list[Any]]:
    functions, first, second = LoggingFunctions(), Logging(), Logging()
    with first, functions, FakeTensorMode() as fake, second:
        yield [first, second, fake, functions]


def _stacks() -> list[Any]:
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return [*_get_current_dispatch_mode_stack(), *_get_current_function_mode_stack()]


def test_modes_come_back_in_their_order_whatever_is_raised() -> None:
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


def test_tracing_goes_on_whatever_is_raised() -> None:
    raising = """
    from fastpurge.recorders import Unrecorded

    def call(y):
        global met
        met = [torch.jit.is_tracing()]
        try:
            with Unrecorded():
                met.append(torch.jit.is_tracing())
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            met.append(torch.jit.is_tracing())

    torch.jit.trace(model, x, check_trace=False)
    assert met == [True, False, True]
    """
    run(PROGRAM, raising)


def test_what_a_suspended_mode_holds_is_in_use() -> None:
    class Collecting(Logging):
        def __init__(self) -> None:
            super().__init__()
            self.made = [torch.ones(70)]

    def enter() -> None:
        Collecting().__enter__()

    before = len(_stacks())
    enter()
    try:
        fastpurge.sweep(keep=())
    finally:
        mode: Any = torch.utils._python_dispatch._get_current_dispatch_mode()
        mode.__exit__(None, None, None)
    assert len(_stacks()) == before
    assert mode.made[0].sum() == 70


def test_a_finalizer_within_a_sweep_computes_with_subclasses_as_ever(program: Any) -> None:
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
