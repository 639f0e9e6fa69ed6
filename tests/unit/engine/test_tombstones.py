"""Every use of a tombstone raises PurgedError, which says how to keep the object."""

from __future__ import annotations

import copy
import gc
import io
import operator
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge import PurgedError, is_purged

pytestmark = pytest.mark.usefixtures("small_heap")


def x() -> torch.Tensor:
    # Created for each use: the sweep of another test would release a module-level tensor.
    return torch.ones(2, 3)


TENSOR_USES: dict[str, Callable[[Any], object]] = {
    "add": lambda z: z + 1,
    "radd": lambda z: 1 + z,
    "tensor + tombstone": lambda z: x() + z,
    "tombstone + tensor": lambda z: z + x(),
    "matmul": lambda z: z @ x().t(),
    "rmatmul": lambda z: x().t() @ z,
    "iadd": lambda z: operator.iadd(z, 1),
    "in-place into": lambda z: x().clone().add_(z),
    "copy from": lambda z: x().clone().copy_(z),
    "copy to": lambda z: z.copy_(x()),
    "neg": lambda z: -z,
    "eq": lambda z: z == 1,
    "lt": lambda z: z < 1,
    "tensor == tombstone": lambda z: x() == z,
    "function": torch.sum,
    "out=": lambda z: torch.add(x(), 1, out=z),
    "in a list": lambda z: torch.cat([x(), z]),
    "in a tuple": lambda z: torch.stack((x(), z)),
    "keyword": lambda z: torch.add(input=x(), other=z),
    "functional": lambda z: torch.nn.functional.linear(x(), z),
    "aten": lambda z: torch.ops.aten.sum(z),
    "method": lambda z: z.sum(),
    "index": lambda z: z[0],
    "index with it": lambda z: x()[z],
    "assign": lambda z: z.__setitem__(0, 1),
    "assign it": lambda z: x().__setitem__(0, z),
    "len": len,
    "iter": list,
    "contains": lambda z: 1 in z,
    "bool": bool,
    "float": float,
    "int": int,
    "complex": complex,
    "item": lambda z: z.item(),
    "tolist": lambda z: z.tolist(),
    "numpy": lambda z: z.numpy(),
    "np.asarray": np.asarray,
    "np.add": lambda z: np.add(np.ones(3), z),
    "dlpack": lambda z: torch.utils.dlpack.from_dlpack(z),
    "shape": lambda z: z.shape,
    "dtype": lambda z: z.dtype,
    "device": lambda z: z.device,
    "grad": lambda z: z.grad,
    "data": lambda z: z.data,
    "set data": lambda z: setattr(z, "data", x()),
    "set grad": lambda z: setattr(z, "grad", x()),
    "requires_grad_": lambda z: z.requires_grad_(),
    "data_ptr": lambda z: z.data_ptr(),
    "storage": lambda z: z.untyped_storage(),
    "size": lambda z: z.size(),
    "detach": lambda z: z.detach(),
    "to": lambda z: z.to(torch.float64),
    "view": lambda z: z.view(-1),
    "clone": torch.clone,
    "own attribute": lambda z: z.anything,
    "set attribute": lambda z: setattr(z, "anything", 1),
    "delete attribute": lambda z: delattr(z, "anything"),
    "hasattr": lambda z: hasattr(z, "anything"),
    "number format": lambda z: f"{z:.4f}",
    "format": lambda z: format(z, ">80"),
    "str.format": lambda z: "{:d}".format(z),  # noqa: UP032
    "percent f": lambda z: "%.3f" % z,  # noqa: UP031
    "percent d": lambda z: "%d" % z,  # noqa: UP031
    "percent x": lambda z: "%x" % z,  # noqa: UP031
    "init": lambda z: z.__init__(),
    "getstate": lambda z: z.__getstate__(),
    "setstate": lambda z: z.__setstate__({}),
    "a special method": lambda z: z.__len__(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy in a list": lambda z: copy.deepcopy([z]),
    "pickle": pickle.dumps,
    "torch.save": lambda z: torch.save(z, io.BytesIO()),
    "backward": lambda z: z.backward(),
    "parameter of": torch.nn.Parameter,
    "swap": lambda z: torch.utils.swap_tensors(x().clone(), z),
}


def _released(program: Any, *, parameter: bool = False) -> None:
    # Only the program refers to it: a local variable here would be spared as running code.
    program.tombstone = torch.nn.Parameter(x()) if parameter else x()
    fastpurge.sweep(keep=(), label="node 7 'Purge ALL'")
    assert is_purged(program.tombstone)


@pytest.mark.parametrize("use", TENSOR_USES.values(), ids=TENSOR_USES)
@pytest.mark.parametrize("parameter", [False, True], ids=["tensor", "parameter"])
def test_every_use_of_a_released_tensor_raises(use: Any, parameter: bool, program: Any) -> None:
    _released(program, parameter=parameter)
    with pytest.raises(PurgedError) as raised:
        use(program.tombstone)
    message = str(raised.value)
    type_name = "Parameter" if parameter else "Tensor"
    assert f"float32 {type_name} of shape (2, 3) on cpu" in message
    assert "node 7 'Purge ALL'" in message
    assert "keep=[...]" in message


BEHIND_TORCH_FUNCTION: dict[str, Callable[[Any], object]] = {
    name: TENSOR_USES[name]
    for name in (
        "add",
        "tensor + tombstone",
        "in-place into",
        "copy from",
        "copy to",
        "function",
        "in a list",
        "functional",
        "aten",
        "index",
        "assign it",
        "item",
        "tolist",
        "numpy",
        "detach",
        "to",
        "clone",
    )
}


@pytest.mark.parametrize("use", BEHIND_TORCH_FUNCTION.values(), ids=BEHIND_TORCH_FUNCTION)
def test_a_tombstone_raises_where_torch_function_is_disabled(use: Any, program: Any) -> None:
    # As in the __torch_function__ of another subclass, and for C++ code.
    _released(program)
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(PurgedError, match="node 7"):
        use(program.tombstone)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_raises_on_a_tombstone(program: Any) -> None:
    graph: Any = torch.jit.trace(lambda a, b: a @ b.t(), (x(), x()))
    assert graph(x(), x()).sum() == 12
    _released(program)
    # Its interpreter turns every Python exception into an anonymous RuntimeError.
    with pytest.raises(RuntimeError, match="TorchScript interpreter"):
        graph(x(), program.tombstone)


MODULE_USES: dict[str, Callable[[Any], object]] = {
    "call": lambda z: z(x()),
    "forward": lambda z: z.forward(x()),
    "parameter": lambda z: z[0].weight,
    "parameters": lambda z: list(z.parameters()),
    "state_dict": lambda z: z.state_dict(),
    "load_state_dict": lambda z: z.load_state_dict({}),
    "to": lambda z: z.to("cpu"),
    "eval": lambda z: z.eval(),
    "attribute": lambda z: z.training,
    "set attribute": lambda z: setattr(z, "x", 1),
    "delete attribute": lambda z: delattr(z, "x"),
    "index": lambda z: z[0],
    "iter": list,
    "len": len,
    "bool": bool,
    "number format": lambda z: f"{z:.4f}",
    "format": lambda z: format(z, ">80"),
    "percent f": lambda z: "%.3f" % z,  # noqa: UP031
    "percent d": lambda z: "%d" % z,  # noqa: UP031
    "init": lambda z: z.__init__(),
    "getstate": lambda z: z.__getstate__(),
    "hasattr": lambda z: hasattr(z, "anything"),
    "vars of its class's": lambda z: z._modules,
    "child of": lambda z: torch.nn.Sequential(z)(x()),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "torch.save": lambda z: torch.save(z, io.BytesIO()),
    "with": lambda z: z.__enter__(),
    "add": lambda z: z + z,
}


@pytest.mark.parametrize("use", MODULE_USES.values(), ids=MODULE_USES)
def test_every_use_of_a_released_module_raises(use: Any, program: Any) -> None:
    program.tombstone = torch.nn.Sequential(torch.nn.Linear(3, 3))
    fastpurge.sweep(keep=(), label="here")
    with pytest.raises(PurgedError, match=r"module Sequential.*\(here\).*keep="):
        use(program.tombstone)


def test_a_tombstone_can_be_printed_identified_and_dropped(program: Any) -> None:
    program.tensor = torch.ones(2, 3)
    program.module = torch.nn.Linear(3, 3)
    ref = weakref.ref(program.tensor)
    fastpurge.sweep(keep=(), label="here")
    expected = "<purged float32 Tensor of shape (2, 3) on cpu, released by here>"
    assert repr(program.tensor) == str(program.tensor) == f"{program.tensor}" == expected
    assert f"{program.tensor!r:>80}".endswith(expected)
    assert repr(program.module) == "<purged module Linear, released by here>"
    assert f"{program.module}" == "%s" % program.module == repr(program.module)  # noqa: UP031
    assert isinstance(program.tensor, torch.Tensor)
    assert not isinstance(program.tensor, torch.nn.Parameter)
    assert not hasattr(torch.nn, "Buffer") or not isinstance(program.tensor, torch.nn.Buffer)
    assert isinstance(program.module, torch.nn.Module)
    assert torch.is_tensor(program.tensor)
    # Containers can find and remove it.
    assert {program.tensor: 1}.pop(program.tensor) == 1
    assert program.module in [program.module]
    del program.tensor
    gc.collect()
    assert ref() is None


def test_only_what_was_released_is_purged() -> None:
    assert not any(is_purged(x) for x in (x(), torch.nn.ReLU(), None, 3, torch.Tensor, "x"))


def test_released_twice_is_a_no_op(program: Any) -> None:
    program.tensor = torch.ones(3)
    fastpurge.sweep(keep=(), label="first")
    fastpurge.sweep(keep=(), label="second")
    with pytest.raises(PurgedError, match="first"):
        program.tensor + 1


def test_purged_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(PurgedError("what and why")))
    assert isinstance(error, RuntimeError)
    assert str(error) == "what and why"


def test_no_tensor_takes_the_data_of_a_tombstone(program: Any) -> None:
    # These do not dispatch, so torch must refuse: a tombstone is a meta tensor, which has no memory.
    _released(program)
    tombstone = program.tombstone
    tensor, parameter = torch.ones(2, 3), torch.nn.Parameter(torch.ones(2, 3))
    for one in (tensor, parameter):
        with pytest.raises(RuntimeError, match="incompatible tensor type"):
            one.data = tombstone
        with pytest.raises((RuntimeError, TypeError)):
            one.grad = tombstone
    with pytest.raises((BufferError, PurgedError)):  # torch 2.4 makes a view first
        torch._C._to_dlpack(tombstone)
    assert tensor.sum() == parameter.sum() == 6


@pytest.mark.filterwarnings("ignore")
def test_the_error_of_a_nested_tensor_names_its_dtype_and_device(program: Any) -> None:
    program.nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    fastpurge.sweep(keep=())
    with pytest.raises(PurgedError, match="this float32 Tensor on cpu was released by fastpurge"):
        program.nested.size(0)
