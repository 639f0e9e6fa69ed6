"""Objects owned by C or C++ code are reported with that owner, and not as running code."""

from __future__ import annotations

import signal
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import is_purged, why
from torch.autograd.graph import register_multi_grad_hook, saved_tensors_hooks

AMONG_HOOKS = "autograd references it, among the hooks that a backward will call"
SIZE = 1000


def _hook() -> Callable[..., Any]:
    referent = torch.full((SIZE,), 7.0)

    def hook(*_: object) -> None:
        assert referent.sum() == 7 * SIZE

    return hook


def _leaf() -> torch.Tensor:
    return torch.ones(3, requires_grad=True)


def on_a_result(program: Any) -> None:
    program.result = _leaf() * 2
    program.result.register_hook(_hook())


def on_a_result_that_is_dropped(program: Any) -> None:
    dropped = _leaf() * 2
    dropped.register_hook(_hook())
    program.result = dropped * 2


def after_accumulation(program: Any) -> None:
    leaf = _leaf()
    leaf.register_post_accumulate_grad_hook(_hook())
    program.result = leaf * 2


def before_a_node(program: Any) -> None:
    program.result = _leaf() * 2
    program.result.grad_fn.register_prehook(_hook())


def after_a_node(program: Any) -> None:
    program.result = _leaf() * 2
    program.result.grad_fn.register_hook(_hook())


def of_several_tensors(program: Any) -> None:
    leaves = [_leaf(), _leaf()]
    program.result = (leaves[0] * leaves[1]) * 2
    handle = register_multi_grad_hook(leaves, _hook())
    # A leaf refers to itself through its hooks in C++, until they are removed.
    program.remove = handle.remove


def that_unpacks(program: Any) -> None:
    hook = _hook()

    def unpack(packed: torch.Tensor) -> torch.Tensor:
        hook()
        return packed

    with saved_tensors_hooks(lambda x: x.detach(), unpack):
        program.result = _leaf() * torch.ones(3)


def that_has_packed(program: Any) -> None:
    hook = _hook()

    def unpack(packed: tuple[Any, torch.Tensor]) -> torch.Tensor:
        packed[0]()
        return packed[1]

    with saved_tensors_hooks(lambda x: (hook, x.detach()), unpack):
        program.result = _leaf() * torch.ones(3)


HOOKS = (
    on_a_result,
    on_a_result_that_is_dropped,
    after_accumulation,
    before_a_node,
    after_a_node,
    of_several_tensors,
    that_unpacks,
    that_has_packed,
)


def _held() -> torch.Tensor:
    alive: list[torch.Tensor] = fastpurge._core.scan((torch.Tensor,))
    mine = (x for x in alive if not is_purged(x) and x.shape == (SIZE,) and bool((x == 7).all()))
    found: torch.Tensor = next(mine)
    return found


@pytest.mark.parametrize("make", HOOKS)
def test_the_owner_of_objects_reachable_from_a_hook_is_autograd(
    make: Callable[[Any], None], program: Any
) -> None:
    program.remove = lambda: None
    make(program)
    plan = fastpurge.plan(keep=())
    spared = plan.spared.get("autograd hooks", 0)
    assert spared >= 4 * SIZE or (SIZE,) in [item.shape for item in plan.items]
    assert plan.spared.get("running", 0) < 4 * SIZE
    found = why(_held())
    if found.path is None:
        assert found.reason is not None
        assert found.reason.startswith(AMONG_HOOKS)
    program.remove()


def test_the_owner_of_a_signal_handler_is_the_interpreter() -> None:
    before = signal.signal(signal.SIGINT, _hook())
    try:
        found = why(_held())
        assert found.reason is not None
        assert found.reason.startswith("the interpreter references it as a signal handler")
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_census_reports_autograd_as_owner(program: Any) -> None:
    after_a_node(program)
    shares = {share.name: share.nbytes for share in fastpurge.census().by_holder}
    assert shares["autograd hooks"] >= 4 * SIZE


def a_constant_of_a_function(program: Any) -> None:
    program.constant = torch.full((SIZE,), 2.0)
    program.function = torch.jit.trace(lambda x: x + program.constant, torch.ones(SIZE))
    assert fastpurge.plan(keep=()).spared["torchscript"] >= 4 * SIZE
    fastpurge.sweep(keep=())
    assert program.function(torch.zeros(SIZE)).sum() == 2 * SIZE
    assert program.constant.sum() == 2 * SIZE


def a_constant_of_a_module(program: Any) -> None:
    class Adds(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x + program.constant

    program.constant = torch.full((SIZE,), 2.0)
    program.module = torch.jit.trace(Adds(), torch.ones(SIZE))
    assert fastpurge.plan(keep=()).spared["torchscript"] >= 4 * SIZE


def a_constant_of_a_kept_function(program: Any) -> None:
    program.constant = torch.full((SIZE,), 2.0)
    program.function = torch.jit.trace(lambda x: x + program.constant, torch.ones(SIZE))
    fastpurge.sweep(keep=program.function, guards=fastpurge.Guard.NONE)
    assert program.constant.sum() == 2 * SIZE


def a_hook_of_a_module(program: Any) -> None:
    module = torch.nn.Linear(3, 3)
    module.register_full_backward_hook(_hook())
    program.result = module(_leaf())
    del module
    found = why(_held())
    assert found.reason is not None
    assert found.reason.startswith(AMONG_HOOKS)


CASES = (a_constant_of_a_function, a_constant_of_a_module, a_constant_of_a_kept_function, a_hook_of_a_module)


def run_case(name: str) -> None:
    """Run one case in a process of its own: torch never drops its constants and hooks."""
    program = types.ModuleType("forgetful_program")
    sys.modules[program.__name__] = program
    next(case for case in CASES if case.__name__ == name)(program)


@pytest.mark.parametrize("name", [case.__name__ for case in CASES])
def test_the_owner_of_permanent_torch_state_is_torch(name: str) -> None:
    command = [sys.executable, __file__, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_owner_of_the_base_of_an_array_is_numpy(program: Any) -> None:
    program.array = torch.ones(SIZE).numpy()
    assert fastpurge.plan(keep=()).spared["numpy"] >= 4 * SIZE


if __name__ == "__main__":
    run_case(sys.argv[1])
