"""`let_go` releases the locals of a traceback, and its text stays the same."""

from __future__ import annotations

import code
import gc
import sys
from collections.abc import Iterator
from traceback import format_exception
from typing import Any

import fastpurge
import pytest
from fastpurge.exceptions.let_go import let_go_of

from tests.unit.exceptions.failing_functions import MiB, alive, big, caught, failed, run_out_of_memory


def test_locals_of_a_traceback_are_released_and_its_text_stays() -> None:
    error = caught(run_out_of_memory)
    assert alive() == 2
    before = format_exception(error)
    gone = fastpurge.let_go(error)
    assert alive() == 0
    assert format_exception(error) == before
    assert "torch.empty(1 << 60)" in "".join(before)
    assert gone.nbytes == 5 * MiB
    inner, outer = gone.held
    assert "inner (failing_functions.py:" in inner.holder
    assert inner.nbytes == 3 * MiB
    assert "outer (failing_functions.py:" in outer.holder
    assert outer.nbytes == 2 * MiB
    assert outer.items[0].shape == (2, MiB // 4)


def test_causes_contexts_and_nested_exceptions_are_released_too() -> None:
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
def test_the_exceptions_of_a_group_are_released_too() -> None:
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


def test_locals_of_finished_callers_of_the_traceback_are_released_too() -> None:
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


def test_a_generator_that_will_resume_keeps_its_locals() -> None:
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


def test_locals_read_by_a_debugger_are_released_too() -> None:
    error = caught(run_out_of_memory)
    step = error.__traceback__
    while step is not None:
        step.tb_frame.f_locals  # noqa: B018 - a debugger asks for it, and before 3.13 it is kept
        step = step.tb_next
    fastpurge.let_go(error)
    assert alive() == 0


def test_suggestions_of_python_stay_in_the_text() -> None:
    def misspelt_name() -> None:
        activations = big()
        assert activatoins is activations  # type: ignore[name-defined]  # noqa: F821

    def misspelt_attribute() -> None:
        big().shpae  # type: ignore[attr-defined]  # noqa: B018

    for misspelt, meant in ((misspelt_name, "activations"), (misspelt_attribute, "shape")):
        error = caught(misspelt)
        before = format_exception(error)
        # Before 3.13 it may be missing: Python suggests none of more than 750 names, and some tensors have
        # as many (`_MAX_CANDIDATE_ITEMS` in Lib/traceback.py). Before 3.12 pytest's `exceptiongroup` does it.
        assert f"Did you mean: '{meant}'" in before[-1] or sys.version_info < (3, 13)
        fastpurge.let_go(error)
        assert alive() == 0
        assert format_exception(error) == before


def test_an_argument_that_is_no_exception_is_refused() -> None:
    with pytest.raises(TypeError, match=r"error must be an exception or None \(the last one\), not str"):
        fastpurge.let_go("OutOfMemoryError")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not type"):
        fastpurge.let_go(ValueError)  # type: ignore[arg-type]


def test_a_generator_hidden_by_gc_freeze_can_resume() -> None:
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


def test_the_suggestion_of_a_misspelt_name_is_unchanged() -> None:
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


def test_an_exception_with_read_only_attributes_is_released() -> None:
    def fails() -> None:
        local = big()
        raise SealedError(f"name 'lcoal' is not defined {len(local)}", name="lcoal")

    error = caught(fails)
    fastpurge.let_go(error)
    assert alive() == 0
    assert error.name in ("lcoal", None)
