"""Traces, exports and compiled graphs do not contain calls of fastpurge. Each test runs a new process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap

import pytest

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
    # The package reads some facts about torch once.
    late = """
    def call(y):
        pass

    expected = result()
    assert "fastpurge.torch_facts.tensors" not in sys.modules

    def call(y):
        import fastpurge
        fastpurge.plan(keep=y)

    assert result() == expected
    """
    run(PROGRAM, TRACED, late)


def test_a_compiled_function_calls_a_sweep_as_it_is() -> None:
    # With a graph break at the call, and without compiled code of the package.
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
    # It reads nothing of torch, and may be compiled.
    calls = calls.replace('    "is_purged": lambda y: fastpurge.is_purged(y),\n', "")
    run(PROGRAM, compiled, calls, "assert results['nothing'] == expected")


def test_sweeps_work_after_one_in_a_compiled_function() -> None:
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

    from torch._dynamo.utils import counters
    assert counters["graph_break"] and all("disable" in why for why in counters["graph_break"])
    """
    run(PROGRAM, after)


def test_a_plan_does_not_import_the_compiler() -> None:
    run("import sys, fastpurge", "fastpurge.plan(keep=())", "assert 'torch._dynamo' not in sys.modules")


def test_tracing_continues_after_any_exception() -> None:
    raising = """
    from fastpurge.torch_facts.recorders import Unrecorded

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


def test_the_default_device_stays_and_is_not_used_by_a_sweep() -> None:
    run(
        "import torch",
        "torch.set_default_device('meta')",
        "import fastpurge",
        "referent = [torch.ones(9, device='cpu')]",
        "fastpurge.sweep(keep=(), wipe=True)",
        "assert fastpurge.is_purged(referent[0])",
        "assert torch.ones(2).device.type == 'meta'",
    )
