"""Guards together: what one spares protects more, and none is asked for nothing."""

from __future__ import annotations

from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import Guard, _core
from fastpurge.engine import survey
from fastpurge.python_facts import library_globals


class TestAlias:
    """What a guard spares protects the memory it stands on, like what was named."""

    def test_aliases_of_a_spared_local_are_spared(self, program: Any) -> None:
        program.tensor = torch.ones(10)
        # On the same storage, and no view: C++ ties the two together in no other way.
        local = torch.empty(0).set_(program.tensor.untyped_storage())
        report = fastpurge.sweep(keep=(), wipe=True)
        assert program.tensor.sum() == 10
        assert local.sum() == 10
        assert report.spared["alias"] >= 40


@pytest.mark.parametrize("guard", list(Guard))
def test_every_guard_has_a_docstring_and_a_name(guard: Guard) -> None:
    assert guard.name
    assert guard in Guard.ALL


def test_guards_do_not_run_without_candidates(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fastpurge.sweep(keep=(), guards=Guard.NONE)

    # Where libraries are known to keep something is asked for first: that saves a walk.
    def everywhere(_: object, *, where_known: bool = False) -> list[Any]:
        return [] if where_known else pytest.fail("asked")

    monkeypatch.setattr(library_globals, "library_state", everywhere)
    monkeypatch.setattr(survey, "running_code", lambda: pytest.fail("asked"))
    fastpurge.sweep(keep=(), min_bytes=1 << 40)


def test_the_base_of_a_kept_view_needs_no_second_heap_walk(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = torch.arange(64).reshape(8, 8)  # C++ holds its base
    fastpurge.sweep(keep=[view])
    walks = 0
    snapshot = _core.snapshot

    def count(*args: Any, **kwargs: Any) -> Any:
        nonlocal walks
        walks += 1
        return snapshot(*args, **kwargs)

    monkeypatch.setattr(_core, "snapshot", count)
    monkeypatch.setattr(survey, "running_code", lambda: pytest.fail("asked"))
    report = fastpurge.sweep(keep=[view], min_bytes=1)
    assert report.spared["alias"] >= 64 * 8
    assert walks == 1
