"""What an exception holds is let go when asked to, and its traceback says the same as before."""

from __future__ import annotations

import code
import gc
import json
import sys
import weakref
from collections.abc import Callable, Iterator
from traceback import format_exception
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge.exceptions.let_go import let_go_of

MiB = 2**20
born: list[weakref.ref[torch.Tensor]] = []


@pytest.fixture(autouse=True)
def _nothing_born_yet() -> None:
    born.clear()


def big(mebibytes: int = 1) -> torch.Tensor:
    tensor = torch.ones(mebibytes, MiB // 4)
    born.append(weakref.ref(tensor))
    return tensor


def alive() -> int:
    return sum(one() is not None for one in born)


def caught(function: Callable[[], object]) -> Any:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def run_out_of_memory() -> None:
    def inner(batch: torch.Tensor) -> torch.Tensor:
        activations = big(3)
        return torch.empty(1 << 60) + activations + batch

    def outer() -> None:
        batch = big(2)
        inner(batch)

    outer()


def test_what_the_functions_of_a_traceback_hold_is_let_go_and_the_text_stays() -> None:
    error = caught(run_out_of_memory)
    assert alive() == 2
    before = format_exception(error)
    gone = fastpurge.let_go(error)
    assert alive() == 0
    assert format_exception(error) == before
    assert "torch.empty(1 << 60)" in "".join(before)
    assert gone.nbytes == 5 * MiB
    inner, outer = gone.held
    assert "inner (test_let_go.py:" in inner.holder
    assert inner.nbytes == 3 * MiB
    assert "outer (test_let_go.py:" in outer.holder
    assert outer.nbytes == 2 * MiB
    assert outer.items[0].shape == (2, MiB // 4)


def test_causes_contexts_and_exceptions_held_by_exceptions_are_let_go_too() -> None:
    def leaf() -> None:
        local = big()
        raise ValueError(f"leaf {len(local)}")

    def because() -> None:
        local = big()
        try:
            leaf()
        except ValueError as error:
            raise RuntimeError(f"because {len(local)}") from error

    def meanwhile() -> None:
        local = big()
        try:
            because()
        except RuntimeError:
            raise KeyError(len(local)) from None

    error = caught(meanwhile)
    error.others = caught(leaf)
    before = format_exception(error)
    assert alive() == 4
    assert fastpurge.let_go(error).nbytes == 4 * MiB
    assert alive() == 0
    assert format_exception(error) == before
    assert type(error.others) is ValueError


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_the_exceptions_of_a_group_are_let_go_too() -> None:
    def leaf() -> None:
        local = big()
        raise ValueError("leaf", local)

    def group() -> None:
        local = big()
        parts = [caught(leaf), ExceptionGroup("inner", [caught(leaf)])]  # noqa: F821
        raise ExceptionGroup(f"outer {len(local)}", parts)  # noqa: F821

    error = caught(group)
    before = format_exception(error)
    assert alive() == 3
    fastpurge.let_go(error)
    assert alive() == 0
    assert format_exception(error) == before
    assert type(error.exceptions[0]) is ValueError


def test_the_last_exception_that_python_remembers_is_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        monkeypatch.setattr(sys, name, None, raising=False)
    assert fastpurge.let_go().held == ()
    code.InteractiveInterpreter({"run": run_out_of_memory}).runsource("run()")
    assert "you tried to allocate" in capsys.readouterr().err
    assert alive() == 2
    before = format_exception(sys.last_value)
    assert fastpurge.let_go().nbytes == 5 * MiB
    assert alive() == 0
    assert format_exception(sys.last_value) == before


def test_what_called_the_functions_of_a_traceback_and_has_ended_is_let_go_too() -> None:
    kept: list[Any] = []

    def keeps() -> Any:
        local = big(4)
        kept.append(caught(run_out_of_memory))
        return local.shape

    keeps()
    assert alive() == 3
    gone = fastpurge.let_go(kept[0])
    assert alive() == 0
    assert any("keeps (" in held.holder and held.nbytes == 4 * MiB for held in gone.held)


def test_a_function_that_is_still_running_keeps_its_locals() -> None:
    local = big()
    try:
        run_out_of_memory()
    except RuntimeError as error:
        gone = fastpurge.let_go(error)
    assert gone.nbytes == 5 * MiB
    assert local.sum() == MiB // 4
    (remains,) = gone.remains
    assert "test_a_function_that_is_still_running" in remains
    assert "is still running" in str(gone)


def test_a_generator_that_will_go_on_keeps_its_locals() -> None:
    errors = []
    ended = []

    def generator() -> Iterator[float]:
        local = big()
        try:
            try:
                run_out_of_memory()
            except RuntimeError as error:
                errors.append(error)
            yield local.sum().item()
            yield local.sum().item()
        finally:
            ended.append(True)

    running = generator()
    next(running)
    assert alive() == 3
    gone = fastpurge.let_go(errors[0])
    assert alive() == 1
    assert not ended
    assert "generator" in gone.remains[0]
    assert next(running) == MiB // 4


def test_what_a_debugger_has_read_is_let_go_too() -> None:
    error = caught(run_out_of_memory)
    step = error.__traceback__
    while step is not None:
        step.tb_frame.f_locals  # noqa: B018 - a debugger asks for it, and before 3.13 it is kept
        step = step.tb_next
    fastpurge.let_go(error)
    assert alive() == 0


def test_what_python_suggests_is_still_in_the_text() -> None:
    def misspelt_name() -> None:
        activations = big()
        assert activatoins is activations  # type: ignore[name-defined]  # noqa: F821

    def misspelt_attribute() -> None:
        big().shpae  # type: ignore[attr-defined]  # noqa: B018

    for misspelt, meant in ((misspelt_name, "activations"), (misspelt_attribute, "shape")):
        error = caught(misspelt)
        before = format_exception(error)
        # Before 3.13 it is not always there: none is suggested of more than 750 names, and some tensors have
        # as many (`_MAX_CANDIDATE_ITEMS` in Lib/traceback.py). Before 3.12 pytest's `exceptiongroup` tells.
        assert f"Did you mean: '{meant}'" in before[-1] or sys.version_info < (3, 13)
        fastpurge.let_go(error)
        assert alive() == 0
        assert format_exception(error) == before


def test_values_of_an_exception_go_and_their_text_stays() -> None:
    class BadBatchError(Exception):
        pass

    def fail() -> None:
        error = BadBatchError("bad batch", {"images": big()}, 3)
        error.batch = big()  # type: ignore[attr-defined]
        error.path = "images/"  # type: ignore[attr-defined]
        raise error

    error = caught(fail)
    before = format_exception(error)
    gone = fastpurge.let_go(error)
    assert alive() == 0
    assert format_exception(error) == before
    assert error.args[0] == "bad batch"
    assert error.args[2] == 3
    assert error.path == "images/"
    (held,) = gone.held
    assert "BadBatchError, the exception itself" in held.holder
    assert gone.nbytes == 2 * MiB


@pytest.mark.parametrize("kind", [ValueError, KeyError])
def test_the_only_value_of_an_exception_goes_and_its_text_stays(kind: type[Exception]) -> None:
    error = kind(big())
    before = format_exception(error)
    assert "tensor([[1., 1., 1.," in "".join(before)
    assert fastpurge.let_go(error).nbytes == MiB
    assert format_exception(error) == before


def test_values_that_are_kept_stay_in_the_exception() -> None:
    tensor = big()
    error = ValueError("wrong", tensor)
    assert fastpurge.let_go(error, keep=[tensor]).held == ()
    assert error.args[1] is tensor
    assert fastpurge.let_go(error, keep={"deep": [[tensor]]}).held == ()
    assert error.args[1] is tensor
    stop = StopIteration(tensor)
    assert fastpurge.let_go(stop, keep=tensor).held == ()
    assert stop.value is tensor


def test_an_exception_that_would_say_something_else_stays_as_it_is() -> None:
    class ShapeError(Exception):
        def __str__(self) -> str:
            return f"unexpected shape {tuple(self.args[0].shape)}"

    error = ShapeError(big())
    gone = fastpurge.let_go(error)
    assert str(error) == "unexpected shape (1, 262144)"
    assert gone.held == ()
    assert "ShapeError: its text would change" in gone.remains[0]

    class Mute(torch.Tensor):
        def __repr__(self) -> str:  # type: ignore[override]
            raise RuntimeError("no memory to say it")

    mute = torch.ones(3).as_subclass(Mute)
    error = ShapeError(mute)
    assert "ShapeError: some of its values cannot be printed" in fastpurge.let_go(error).remains[0]
    assert error.args[0] is mute


def test_memory_counts_once_and_only_if_nothing_alive_stands_on_it(program: Any) -> None:
    program.tensor = big(2)

    def fail() -> None:
        mine = big(3)
        views = [mine[:1], mine[1:], program.tensor[:1]]
        raise ValueError(len(views))

    gone = fastpurge.let_go(caught(fail))
    assert gone.nbytes == 3 * MiB
    assert len(gone.held[0].items) == 4


def test_what_dies_only_when_garbage_is_collected_is_told_as_well() -> None:
    def fail() -> None:
        module = torch.nn.Linear(MiB // 4, 1)
        module.itself = [module]  # type: ignore[assignment]
        raise ValueError(module.in_features)

    gone = fastpurge.let_go(caught(fail))
    (held,) = gone.held
    assert held.holder == "reference cycles through these"
    assert sorted(item.type_name for item in held.items) == ["Linear", "Parameter", "Parameter"]
    assert held.nbytes == MiB + 4


def test_what_was_garbage_before_is_not_told() -> None:
    node: dict[str, Any] = {"tensor": big()}
    node["itself"] = node
    del node
    assert fastpurge.let_go(caught(run_out_of_memory)).nbytes == 5 * MiB


def test_a_tensor_that_cannot_say_what_it_is_dies_like_any_other() -> None:
    class Secret(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("secret")

    def fail() -> None:
        wrapped = torch.Tensor._make_wrapper_subclass(
            Secret, (3,), dispatch_sizes_strides_policy="sizes", dispatch_device=True
        )
        raise ValueError(type(wrapped).__name__)

    (held,) = fastpurge.let_go(caught(fail)).held
    assert held.items[0].type_name.endswith("Secret")
    assert held.nbytes == 0


def test_what_is_no_exception_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"error must be an exception or None \(the last one\), not str"):
        fastpurge.let_go("OutOfMemoryError")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not type"):
        fastpurge.let_go(ValueError)  # type: ignore[arg-type]


def test_what_was_let_go_reads_well_and_goes_through_json() -> None:
    gone = fastpurge.let_go(caught(run_out_of_memory))
    text = str(gone)
    assert "fastpurge let go of 5.0M" in text
    assert "3.0M" in text
    assert "fastpurge let go of 5.0M" in gone._repr_html_()
    data = json.loads(json.dumps(gone.to_dict()))
    assert data["nbytes"] == 5 * MiB
    assert data["held"][0]["items"][0]["dtype"] == "float32"
    assert data["remains"] == []


def failed(*values: object) -> Any:
    def fail() -> None:
        local = big()
        raise ValueError(len(local), *values)

    return caught(fail)


HELD = {
    "list": lambda: [failed(), failed()],
    "dict of tuples": lambda: {0: (failed(), "text")},
    "exc_info": lambda: _exc_info(failed()),
    "traceback": lambda: failed().__traceback__,
}


def _exc_info(error: BaseException) -> Any:
    return type(error), error, error.__traceback__


@pytest.mark.parametrize("name", HELD)
def test_exceptions_in_containers_are_let_go_and_the_containers_stay(name: str) -> None:
    error = failed()
    error.held = held = HELD[name]()
    before = format_exception(error)
    fastpurge.let_go(error)
    assert alive() == 0
    assert error.held is held
    assert format_exception(error) == before


class Secret:
    """Says what it is to nobody."""

    def __init__(self) -> None:
        self.tensor = big()

    def __repr__(self) -> str:
        raise AssertionError("asked")


def test_what_is_not_printed_is_not_asked_what_it_is() -> None:
    error = failed()
    error.secret, error.batch = Secret(), {"x": big()}
    gone = fastpurge.let_go(error)
    assert alive() == 0
    assert gone.remains == ()
    assert str(error.secret) == "<Secret, let go>"


def test_one_value_that_cannot_say_what_it_is_keeps_no_other() -> None:
    error: Any = ValueError("no", Secret())
    error.batch = big(2)
    before = format_exception(error)
    gone = fastpurge.let_go(error)
    assert format_exception(error) == before
    assert gone.nbytes == 2 * MiB
    assert alive() == 1
    assert gone.remains == ("ValueError: some of its values cannot be printed, and stay",)


KEPT = {
    "view": lambda x: x[:1],
    "array": lambda x: x.numpy(),
    "owner of a gradient": lambda x: _with_gradient(x),
}


def _with_gradient(gradient: torch.Tensor) -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient
    return parameter


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_by_memory_or_by_what_hides_it_stays(name: str) -> None:
    tensor = big()
    error = ValueError("no", tensor)
    fastpurge.let_go(error, keep=[KEPT[name](tensor)])
    assert error.args[1] is tensor


def test_what_gc_freeze_has_put_out_of_sight_goes_on() -> None:
    def work() -> Iterator[int]:
        local = big()
        yield len(local)
        yield 2

    running: Any = work()
    next(running)
    error = failed()
    error.frame = running.gi_frame
    error.__cause__ = RuntimeError()
    gc.freeze()
    try:
        let_go_of([error, running.gi_frame], ())
    finally:
        gc.unfreeze()
    assert next(running) == 2


def test_a_suggestion_is_kept_and_so_is_the_name_that_was_missing() -> None:
    def misspells() -> None:
        weight = big()
        print(len(weight), wieght)  # type: ignore[name-defined]  # noqa: F821, T201

    error = caught(misspells)
    before = format_exception(error)
    fastpurge.let_go(error)
    assert alive() == 0
    assert format_exception(error) == before


class SealedError(NameError):
    def __setattr__(self, name: str, value: object) -> None:
        raise AssertionError("asked")


def test_an_exception_that_lets_nothing_be_set_is_let_go_all_the_same() -> None:
    def fails() -> None:
        local = big()
        raise SealedError(f"name 'lcoal' is not defined {len(local)}", name="lcoal")

    error = caught(fails)
    fastpurge.let_go(error)
    assert alive() == 0
    assert error.name in ("lcoal", None)


def test_with_too_little_memory_to_tell_it_lets_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    error = caught(run_out_of_memory)
    assert alive() == 2
    monkeypatch.setattr("fastpurge.exceptions.let_go.LiveObjects", short)
    gone = fastpurge.let_go(error)
    assert alive() == 0
    assert gone.held == ()
    assert gone.remains[0].startswith("too little memory to report what was freed")
