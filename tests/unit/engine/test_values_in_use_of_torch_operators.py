"""Values of functions that torch's tables of operators alone refer to survive a sweep."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.engine.values_in_use import four, sweep, total


def adds_to(totals: list[float]) -> Callable[..., None]:
    """A callback that alone refers to its tensor."""
    value = four()
    return lambda *_, **__: totals.append(total(value))


def test_functions_of_a_custom_operator_keep_their_values() -> None:
    totals: list[float] = []
    name = f"fastpurge_{uuid.uuid4().hex}::twice"

    def define() -> None:
        kernel, set_up, backward, mapped = (adds_to(totals) for _ in range(4))

        @torch.library.custom_op(name, mutates_args=())
        def twice(x: torch.Tensor) -> torch.Tensor:
            kernel()
            return x * 2

        def differentiated(_: Any, grad: Any) -> Any:
            backward()
            return grad * 2

        def vmapped(_: Any, in_dims: Any, x: torch.Tensor) -> Any:
            mapped()
            return x * 2, in_dims[0]

        twice.register_autograd(differentiated, setup_context=lambda ctx, inputs, output: set_up())
        twice.register_vmap(vmapped)

    define()
    sweep()
    namespace, _, _ = name.partition("::")
    operator = getattr(torch.ops, namespace).twice
    x = torch.ones(2, requires_grad=True)
    operator(x).sum().backward()
    torch.vmap(operator)(torch.ones(2, 2))
    assert (totals, total(x.grad)) == ([4] * 4, 4)


def test_a_kernel_of_a_library_of_operators_keeps_its_value(program: Any) -> None:
    totals: list[float] = []

    def define(namespace: str) -> None:
        record = adds_to(totals)

        def kernel(x: torch.Tensor) -> torch.Tensor:
            record()
            return x.clone()

        program.library = torch.library.Library(namespace, "FRAGMENT")
        program.library.define("copied(Tensor x) -> Tensor")
        program.library.impl("copied", kernel, "CompositeExplicitAutograd")

    namespace = f"fastpurge_{uuid.uuid4().hex}"
    define(namespace)
    sweep()
    getattr(torch.ops, namespace).copied(four())
    assert totals == [4]


def test_a_rule_of_an_operator_for_a_mode_keeps_its_value() -> None:
    totals: list[float] = []
    namespace = f"fastpurge_{uuid.uuid4().hex}"

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    def define() -> None:
        record = adds_to(totals)

        @torch.library.custom_op(f"{namespace}::copied", mutates_args=())
        def copied(x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        def rule(_: Any, func: Any, __: Any, args: Any, kwargs: Any) -> Any:
            record()
            return func(*args, **kwargs)

        torch.library.register_torch_dispatch(f"{namespace}::copied", Mode, rule)

    define()
    sweep()
    with Mode():
        getattr(torch.ops, namespace).copied(four())
    assert totals == [4]


@pytest.mark.imports_much
def test_a_backend_of_the_compiler_keeps_its_value() -> None:
    dynamo: Any = pytest.importorskip("torch._dynamo")
    totals: list[float] = []
    name = f"fastpurge_{uuid.uuid4().hex}"

    def define() -> None:
        record = adds_to(totals)

        def backend(graph: Any, _: Any) -> Any:
            record()
            return graph.forward

        dynamo.register_backend(backend, name=name)

    define()
    sweep()
    compiled: Any = torch.compile(torch.neg, backend=name)
    assert (total(compiled(four())), totals) == (-4, [4])
