"""Each object is released completely, or skipped unchanged with a reason."""

from __future__ import annotations

import copy
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import is_purged
from torch._subclasses.fake_tensor import FakeTensorMode

pytestmark = pytest.mark.usefixtures("small_heap")


def w() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(3, 3))


class Raising(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("do not touch me")


class Slotted(torch.Tensor):
    __slots__ = ("extra",)


class RaisingDispatch(torch.Tensor):
    @staticmethod
    def make() -> Any:
        referent = torch.ones(3)
        make = torch.Tensor._make_wrapper_subclass
        outer: Any = make(RaisingDispatch, (3,), dtype=torch.float32)
        outer.referent = referent
        return outer

    @classmethod
    def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("not me either")


def _inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3)


def _fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(3)


KINDS = {
    "plain": lambda: torch.ones(3),
    "empty": lambda: torch.empty(0),
    "scalar": lambda: torch.tensor(3.0),
    "parameter": lambda: torch.nn.Parameter(torch.ones(3)),
    "non-leaf": lambda: w() * 2,
    "non-leaf view": lambda: (w() * 2)[0],
    "view": lambda: torch.ones(10)[2:],
    "expanded": lambda: torch.ones(1).expand(5),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "fp8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "bool": lambda: torch.ones(3, dtype=torch.bool),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "meta": lambda: torch.empty(3, device="meta"),
    "inference": _inference,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse csr": lambda: torch.eye(3).to_sparse_csr(),
    "sparse csc": lambda: torch.eye(3).to_sparse_csc(),
    "mkldnn": lambda: torch.ones(3, 3).to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "fake": _fake,
    "lazy": lambda: torch.nn.UninitializedParameter(),
    "lazy buffer": lambda: torch.nn.UninitializedBuffer(),
    "shared": lambda: torch.ones(3).share_memory_(),
    "raising": lambda: torch.ones(3).as_subclass(Raising),
    "raising wrapper": RaisingDispatch.make,
    "slotted": lambda: torch.ones(3).as_subclass(Slotted),
    "C++ weak reference": lambda: _weakly_held(torch.ones(3)),
}


if hasattr(torch.nn, "Buffer"):  # from torch 2.5 on
    KINDS["buffer"] = lambda: torch.nn.Buffer(torch.ones(3))


WEAK: list[object] = []


def _weakly_held(tensor: torch.Tensor) -> torch.Tensor:
    WEAK.append(torch._C._WeakTensorRef(tensor))  # type: ignore[attr-defined]
    return tensor


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wipe", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=[pytest.mark.imports_much] if make is _fake else [])
        for name, make in KINDS.items()
    ],
)
def test_every_kind_of_tensor_is_released_or_skipped_with_a_reason(
    make: Any, wipe: bool, program: Any
) -> None:
    program.tensor = make()
    was = type(program.tensor)
    report = fastpurge.sweep(keep=(), wipe=wipe)
    if is_purged(program.tensor):
        assert any(item.type_name == was.__qualname__ for item in report.released)
        with pytest.raises(fastpurge.PurgedError):
            program.tensor.shape  # noqa: B018
    else:
        assert type(program.tensor) is was
        skipped = [item for item in report.skipped if item.type_name == was.__qualname__]
        assert skipped
        assert all(item.reason for item in skipped)
    WEAK.clear()


@pytest.mark.imports_much
def test_all_but_two_kinds_are_released(program: Any) -> None:
    # The test above would pass if nothing were ever released.
    program.tensors = {name: make() for name, make in KINDS.items()}
    fastpurge.sweep(keep=())
    left = {name for name, tensor in program.tensors.items() if not is_purged(tensor)}
    WEAK.clear()
    assert left == {"slotted", "C++ weak reference"}


def test_skipped_objects_are_unchanged(program: Any) -> None:
    program.slotted = torch.ones(3).as_subclass(Slotted)
    program.slotted.extra = "here"
    program.weak = _weakly_held(torch.ones(3))
    program.weak.attribute = torch.ones(2)
    program.junk = torch.ones(3)
    assert "__slots__" in str(fastpurge.plan(keep=()).skipped[0].reason)
    report = fastpurge.sweep(keep=(), wipe=True)
    WEAK.clear()
    # The second one refuses during the release; then its attributes stay too.
    assert len(report.skipped) == 3
    assert program.slotted.tolist() == program.weak.tolist() == [1, 1, 1]
    assert program.slotted.extra == "here"
    assert program.weak.attribute.tolist() == [1, 1]
    assert is_purged(program.junk)


def test_a_module_with_a_layout_of_its_own_is_skipped(program: Any) -> None:
    class SlottedModule(torch.nn.Module):
        __slots__ = ("extra",)

    program.module = SlottedModule()
    program.module.weight = torch.nn.Parameter(torch.ones(3))
    report = fastpurge.sweep(keep=(), models=True)
    assert [item.kind for item in report.skipped] == ["module", "tensor"]
    assert "layout" in str(report.skipped[0].reason)
    assert not is_purged(program.module)
    assert program.module.weight.tolist() == [1, 1, 1]  # it is not released partially


def test_a_module_that_was_never_initialised_is_released(program: Any) -> None:
    program.module = torch.nn.Linear.__new__(torch.nn.Linear)
    fastpurge.sweep(keep=(), devices=None)
    assert is_purged(program.module)


def test_a_module_whose_parts_are_not_dicts_is_released(program: Any) -> None:
    program.module = torch.nn.Module()
    program.module.__dict__.update(_parameters=3, _modules=[1])
    fastpurge.sweep(keep=(), min_bytes=0)
    assert is_purged(program.module)


def test_tensors_saved_by_autograd_are_intact_after_a_release(program: Any) -> None:
    # Even without guards, the references of C++ keep the memory alive.
    w = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    program.hidden = w * w
    loss = (program.hidden**2).sum()
    fastpurge.sweep(keep=[w, loss], guards=fastpurge.Guard.NONE, wipe=True)
    loss.backward()
    assert torch.equal(w.grad, 4 * w.detach() ** 3)  # type: ignore[arg-type]


def test_a_leaf_read_back_from_a_graph_is_unchanged(program: Any) -> None:
    program.leaf = torch.nn.Parameter(torch.ones(3))
    loss = (program.leaf * 2).sum()
    node = loss.grad_fn.next_functions[0][0].next_functions[0][0]
    fastpurge.sweep(keep=[loss], guards=fastpurge.Guard.NONE)
    leaf = node.variable
    assert type(leaf) is torch.nn.Parameter
    assert leaf.tolist() == [1, 1, 1]


def test_a_leaked_loss_frees_its_graph(program: Any) -> None:
    # A common leak: a list of losses refers to every activation, in C++.
    freed = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.watch = Watch()
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad

    class Watch:
        def __del__(self) -> None:
            freed.append(1)

    program.losses = [Watched.apply(w()).sum()]
    fastpurge.sweep(keep=())
    assert freed == [1]


def test_the_contents_of_a_skipped_object_stay(program: Any) -> None:
    program.tensor = torch.ones(3).as_subclass(Slotted)
    program.tensor.extra = torch.ones(3)
    program.wrapper = RaisingSize.make()
    report = fastpurge.sweep(keep=())
    assert {item.type_name for item in report.skipped} == {"Slotted", "RaisingSize", "Tensor"}
    assert program.tensor.extra.sum() == 3
    assert program.wrapper.referent.sum() == 3


class RaisingError(Exception):
    def __str__(self) -> str:
        raise ValueError("cannot even say what is wrong")


class RaisingSize(RaisingDispatch):
    """A tensor that computes its own size, and raises an error that cannot be printed."""

    @staticmethod
    def make() -> Any:
        make: Any = torch.Tensor._make_wrapper_subclass
        outer = make(RaisingSize, (3,), dtype=torch.float32, dispatch_sizes_strides_policy="sizes")
        outer.referent = torch.ones(3)
        return outer

    @classmethod
    def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
        raise RaisingError


def test_an_error_stored_by_its_class_keeps_nothing_alive(program: Any) -> None:
    class Remembers(RaisingDispatch):
        last: Any = None

        @classmethod
        def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
            cls.last = ValueError("remember me")
            raise cls.last

    make: Any = torch.Tensor._make_wrapper_subclass
    program.wrapper = make(Remembers, (3,), dtype=torch.float32, dispatch_sizes_strides_policy="sizes")
    program.tensor = torch.ones(3)
    assert "remember me" in str(fastpurge.sweep(keep=()).skipped[0].reason)
    assert is_purged(program.tensor)


def test_an_unprintable_error_ends_no_sweep(program: Any) -> None:
    program.wrapper = RaisingSize.make()
    [item, _] = fastpurge.sweep(keep=()).skipped
    assert item.reason == "RaisingError"


class RaisingMeta(type):
    asked = 0

    def __eq__(cls, other: object) -> bool:
        RaisingMeta.asked += 1
        raise ValueError("do not compare me")

    __hash__ = type.__hash__


def test_a_metaclass_is_never_compared(program: Any) -> None:
    module_class = RaisingMeta("Raising", (torch.nn.Module,), {})
    program.module, program.tensor = module_class(), torch.ones(3)
    kept = module_class()
    RaisingMeta.asked = 0
    fastpurge.sweep(keep=[kept])
    assert RaisingMeta.asked == 0
    assert is_purged(program.module)
    assert not is_purged(kept)


class RaisingName(str):
    def __format__(self, spec: str) -> str:
        raise ValueError("do not print me")

    __str__ = __repr__ = __format__  # type: ignore[assignment]


def test_a_class_name_of_a_str_subclass_is_reported(program: Any) -> None:
    cls = type("Named", (torch.nn.Module,), {})
    cls.__qualname__ = RaisingName("Named")
    program.module = cls()
    assert "Named" in str(fastpurge.sweep(keep=()))
    assert "Named" in repr(program.module)


def test_a_module_s_own_finalizer_runs(program: Any) -> None:
    ends = []

    class Mortal(torch.nn.Module):
        def __del__(self) -> None:
            ends.append(self.name)

    program.module = Mortal()
    program.module.name = "mortal"
    fastpurge.sweep(keep=())
    assert ends == ["mortal"]
    assert is_purged(program.module)


def test_dicts_that_a_released_module_shares_stay_as_they_are(program: Any) -> None:
    program.module = torch.nn.Linear(3, 3)
    kept = copy.copy(program.module)  # shares the parameter dicts
    program.other = torch.nn.Linear(2, 2)
    parameters = program.other._parameters
    expected = kept(torch.ones(3)).tolist()
    fastpurge.sweep(keep=[kept, [parameters]])
    assert is_purged(program.module)
    assert is_purged(program.other)
    assert kept(torch.ones(3)).tolist() == expected
    assert set(parameters) == {"weight", "bias"}
    assert parameters["weight"].shape == (2, 2)


def test_kept_attributes_of_a_released_tensor_stay(program: Any) -> None:
    program.tensor = torch.ones(3)
    program.tensor.note = torch.ones(2)
    attributes = vars(program.tensor)
    fastpurge.sweep(keep=[attributes])
    assert is_purged(program.tensor)
    assert attributes["note"].tolist() == [1, 1]


@pytest.mark.imports_much
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_leaked_script_module_and_its_optimizer_go_in_one_sweep(program: Any) -> None:
    jit: Any = torch.jit
    program.model = jit.script(torch.nn.Linear(3, 3))
    program.optimizer = torch.optim.SGD(program.model.parameters(), lr=0.1)
    program.weight = program.model.weight
    fastpurge.sweep(keep=())
    assert is_purged(program.model)
    assert is_purged(program.weight)
