"""Code that `torch.compile` made for a kept model is kept, and a sweep never breaks the compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

# In a process of its own: dynamo keeps state of every compilation.
PROGRAM = """
import json, sys, torch, fastpurge
from fastpurge import is_purged

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.factors = [torch.tensor(2.0)]

    def forward(self, x):
        return torch.nn.functional.gelu(self.linear(x)) * self.factors[0] + torch.tensor([1.0, 2.0, 3.0, 4.0])

class Program:
    pass

def compiled():
    torch.manual_seed(0)
    return torch.compile(Model(), backend=sys.argv[1])

def step(model, x):
    loss = model(x).pow(2).sum()
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return [loss.detach(), *grads]

def main(program):
    kept, program.model, plain = compiled(), compiled(), Model()
    plain.load_state_dict(kept._orig_mod.state_dict())
    program.junk = torch.ones(100)
    x, longer = torch.ones(2, 4), torch.ones(5, 4)
    expected = step(kept, x)
    step(program.model, x)
    fastpurge.sweep(keep=[kept, plain, x, longer, expected], wipe=True)
    again = step(kept, x)
    grown = kept(longer)  # has to be compiled once more
    fresh = compiled()(x)
    return {
        "unkept is purged": is_purged(program.model) and is_purged(program.junk),
        "same": all(torch.equal(a, b) for a, b in zip(expected, again)),
        "recompiled": torch.allclose(grown, plain(longer), atol=1e-5),
        "compiles another": torch.allclose(fresh, plain(x), atol=1e-5),
    }

program = Program()
print(json.dumps(main(program)))
"""


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_kept_compiled_model_works_and_others_can_be_compiled(backend: str, tmp_path: Any) -> None:
    if backend == "inductor" and not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, backend],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    assert [name for name, holds in result.items() if not holds] == []


FROZEN = """
import torch, torch._inductor.config, fastpurge
from fastpurge import is_purged

torch._inductor.config.freezing = True
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
compiled, x, leak = torch.compile(model), torch.ones(1, 3, 16, 16), [torch.ones(9)]
with torch.no_grad():
    expected = compiled(x)
    fastpurge.sweep(keep=[model, compiled, x, expected])
    assert is_purged(leak[0])
    assert torch.equal(compiled(x), expected)
"""


def test_weights_frozen_into_compiled_code_stay(tmp_path: Any) -> None:
    # Inductor writes them into a module of its own, in the folder of its cache.
    if not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FROZEN], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr


INVALIDATED = """
import gc, torch, fastpurge
from fastpurge import is_purged

@torch.compile(backend="eager")
def f(x, o):
    return o.go(x)

def once():
    class Local:
        def go(self, x):
            return x + 1
    return f(torch.ones(3), Local())

once()
gc.collect()
for _ in range(2):  # the second time with more than one entry
    referent = [torch.ones(9)]
    fastpurge.plan(keep=())
    fastpurge.sweep(keep=f)
    assert is_purged(referent[0])
    assert once().tolist() == [2.0] * 3
"""

RESET = """
import threading, torch, fastpurge

def compile_over_and_over():
    for number in range(12):
        torch._dynamo.reset()
        f = torch.compile(lambda x: x * number + factor, backend="eager")
        results.append(f(torch.ones(2)).tolist() == [number + 2.0] * 2)

factor = torch.full((2,), 2.0)
results, errors = [], []
import torch._dynamo
thread = threading.Thread(target=compile_over_and_over)
thread.start()
while thread.is_alive():
    try:
        fastpurge.plan(keep=factor, collect=False)
    except Exception as error:
        errors.append(repr(error))
    thread.join(0.05)
assert not errors, errors
assert results == [True] * 12
"""

UNREADABLE = """
import torch, fastpurge, sys
from fastpurge import is_purged
from fastpurge.torch_facts import compiled

table = torch.ones(70)
class Program:
    pass
program = Program()

def make():
    constant = torch.ones(80)
    return torch.compile(lambda x: (x * constant).sum() + torch.tensor([1.0, 2.0]), backend="eager")

f = make()
expected = f(torch.ones(80)).tolist()
program.leak = torch.ones(90)
{broken}
planned = fastpurge.plan(keep=f).items
assert not [one for one in planned if "GraphModule" in one.type_name], planned
fastpurge.sweep(keep=f)
assert is_purged(program.leak)
assert f(torch.ones(80)).tolist() == expected
"""

# As another version of torch may define it.
BROKEN = {
    "nothing": "",
    "no accessors": "compiled._CONTENTS.clear()",
    "accessors that raise": "compiled._CONTENTS[:] = [int, int]",
    "no list of codes": "del torch._dynamo.convert_frame.output_codes",
    "another list of codes": "torch._dynamo.convert_frame.input_codes.seen = [1]",
}
PROGRAMS = {
    "invalidated": INVALIDATED,
    "reset": RESET,
    **{name: UNREADABLE.format(broken=broken) for name, broken in BROKEN.items()},
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_unreadable_compiled_code_is_spared_and_ends_no_sweep(name: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAMS[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
