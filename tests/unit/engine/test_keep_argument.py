"""An invalid `keep` is an error that says what to write instead, before anything is released."""

from __future__ import annotations

import itertools
import sys
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge import is_purged
from fastpurge.exceptions.let_go import let_go


class Model(torch.nn.Module):
    pass


def _ended() -> Iterator[int]:
    made = (number for number in range(3))
    list(made)
    return made


async def _asynchronous() -> Any:
    yield 1


MODEL = Model()
REFUSED: dict[str, tuple[object, str]] = {
    "a name": ("model", r"keep=\[model\]"),
    "a text": ("the model", "without quotes"),
    "an empty text": ("", r"keep=\[model\]"),
    "a text of a class of its own": (type("Text", (str,), {})("unet"), r"keep=\[unet\]"),
    "bytes": (b"model", r"keep=\[model\]"),
    "None": (None, r"keep=\(\) to protect nothing"),
    "a bool": (True, r"keep=\(\)"),
    "an int": (0, r"keep=\(\)"),
    "a float": (1.5, r"keep=\(\)"),
    "a complex number": (1j, r"keep=\(\)"),
    "a number of NumPy's": (np.float32(1), r"keep=\(\)"),
    "Ellipsis": (..., r"keep=\(\)"),
    "NotImplemented": (NotImplemented, r"keep=\(\)"),
    "a device": (torch.device("cpu"), r"keep=\(\)"),
    "a dtype": (torch.float16, r"keep=\(\)"),
    "a weak reference": (weakref.ref(MODEL), "weak reference"),
    "a proxy": (weakref.proxy(MODEL), "weak reference"),
    "names": (["model", "x"], "without quotes"),
    "a tuple of a name": (("model",), "without quotes"),
    "a set of names": ({"model"}, "without quotes"),
    "a deque of names": (deque([b"model"]), "without quotes"),
    "a name and None": (["vae", None], "without quotes"),
    "weak references": ([weakref.ref(MODEL)], "weak"),
    "a generator": ((one for one in [MODEL]), r"keep=list\(...\)"),
    "a generator that has ended": (_ended(), r"keep=list\(...\)"),
    "an asynchronous generator": (_asynchronous(), r"keep=list\(...\)"),
    "parameters": (MODEL.parameters(), r"keep=list\(...\)"),
    "map": (map(str, [MODEL]), r"keep=list\(...\)"),
    "filter": (filter(None, [MODEL]), r"keep=list\(...\)"),
    "zip": (zip([MODEL], [MODEL], strict=True), r"keep=list\(...\)"),
    "an iterator of a list": (iter([MODEL]), r"keep=list\(...\)"),
    "an iterator of a dict": (iter({"model": MODEL}.values()), r"keep=list\(...\)"),
    "reversed": (reversed([MODEL]), r"keep=list\(...\)"),
    "itertools.chain": (itertools.chain([MODEL]), r"keep=list\(...\)"),
    "itertools.count": (itertools.count(), r"keep=list\(...\)"),
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "sweep": lambda keep: fastpurge.sweep(keep=keep),
    "plan": lambda keep: fastpurge.plan(keep=keep),
    "let_go": lambda keep: let_go(ValueError(), keep=keep),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("keep", "message"), REFUSED.values(), ids=REFUSED)
def test_a_keep_argument_without_objects_is_refused(
    call: Any, keep: object, message: str, program: Any
) -> None:
    program.forgotten = torch.ones(3)
    with pytest.raises(TypeError, match=f"^keep .*{message}"):
        call(keep)
    assert program.forgotten.sum() == 3


class Computed:
    """A sequence whose elements are those of an attribute."""

    def __init__(self, referent: object) -> None:
        self.referent = referent

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> object:
        return self.referent


class Loop:
    """An iterator of a class of the program."""

    def __init__(self, referent: object) -> None:
        self.referent = referent

    def __iter__(self) -> Loop:
        return self

    def __next__(self) -> object:
        return self.referent


def _array(referent: object) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = referent
    return array


class Raising(type):
    """A metaclass whose special methods raise."""

    def __eq__(cls, _: object) -> bool:
        raise AssertionError

    def __hash__(cls) -> int:
        raise AssertionError

    def __instancecheck__(cls, _: object) -> bool:
        raise AssertionError


class OfRaising(metaclass=Raising):
    __slots__ = ("referent",)

    def __init__(self, referent: object) -> None:
        self.referent = referent


ACCEPTED: dict[str, Callable[[Any], object]] = {
    "with None": lambda x: [x, None],
    "with a text": lambda x: [x, "label", 3],
    "under a name": lambda x: {"x": x, "name": "text"},
    "an object array": _array,
    "a deque": lambda x: deque([x]),
    "a view of a dict": lambda x: {"x": x}.values(),
    "the items of a dict": lambda x: {"x": x}.items(),
    "an ordered dict": lambda x: OrderedDict(x=x),
    "a defaultdict": lambda x: defaultdict(list, x=x),
    "a mapping proxy": lambda x: MappingProxyType({"x": x}),
    "a namespace": lambda x: SimpleNamespace(x=x),
    "a sequence of its own": Computed,
    "an iterator of its own": Loop,
    "a class that answers no question": OfRaising,
    "a subclass of list": lambda x: type("Own", (list,), {})([x]),
    "a named tuple": lambda x: torch.return_types.max((x, x)),
    "a suspended generator in a list": lambda x: [(one for one in [x])],
    "a function": lambda x: lambda: x,
    "locals": lambda x: locals(),
    "locals of a frame": lambda x: sys._getframe().f_locals,
}


@pytest.mark.parametrize("make", ACCEPTED.values(), ids=ACCEPTED)
def test_any_other_object_is_kept_with_its_contents(make: Any, program: Any) -> None:
    program.kept, program.other = torch.ones(3), torch.ones(4)
    fastpurge.plan(keep=make(program.kept)).apply()
    assert program.kept.sum() == 3
    assert is_purged(program.other)


@pytest.mark.parametrize("keep", [(), [], {}, set(), [None], [3, 0.5]], ids=repr)
def test_none_and_numbers_in_a_list_are_accepted(keep: object, program: Any) -> None:
    program.other = torch.ones(4)
    fastpurge.sweep(keep=keep)
    assert is_purged(program.other)


VIEWS: dict[str, Callable[[Any], object]] = {
    "values": lambda module: {"module": module}.values(),
    "keys": lambda module: {module: 1}.keys(),
    "a deque": lambda module: deque([module]),
    "an ordered dict": lambda module: OrderedDict(module=module),
    "a defaultdict": lambda module: defaultdict(list, module=module),
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_elements_of_every_plain_container_are_kept(make: Any, program: Any) -> None:
    program.tensor = torch.ones(3)  # a closure stops at modules, unless they are named
    fastpurge.sweep(keep=make(program))
    assert program.tensor.sum() == 3


POSITIONAL: dict[str, tuple[Any, str]] = {
    "sweep": (fastpurge.sweep, r"sweep\(keep=\[model\]\)"),
    "plan": (fastpurge.plan, r"plan\(keep=\[model\]\)"),
    "distributed.sweep": (fastpurge.distributed.sweep, r"sweep\(keep=\[model\]\)"),
    "watch": (fastpurge.watch, r"watch\(above=..., keep=lambda: \[model\]\)"),
}


@pytest.mark.parametrize(("call", "instead"), POSITIONAL.values(), ids=POSITIONAL)
@pytest.mark.parametrize("more", [{}, {"keep": ()}], ids=["alone", "with keep"])
def test_positional_objects_are_refused(call: Any, instead: str, more: Any, program: Any) -> None:
    program.model = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=instead):
        call(program.model, **more)
    assert not is_purged(program.model)


def test_arguments_are_keyword_only_and_the_label_is_the_line_of_the_caller(tmp_path: Path) -> None:
    import inspect

    for call, _ in POSITIONAL.values():
        names = inspect.signature(call).parameters
        assert "keep" in names
        assert all(one.kind is one.KEYWORD_ONLY for one in names.values())
    # A label names the line of the caller, and no line of the package.
    assert __file__ in str(fastpurge.plan(keep=()))
