"""Guards together: aliases of spared objects are spared, and no guard runs without need."""

from __future__ import annotations

from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import Guard, _core
from fastpurge.engine import survey
from fastpurge.python_facts import library_globals


class TestAlias:
    """Objects that a guard spares protect their aliases, as kept objects do."""

    def test_aliases_of_a_spared_local_are_spared(self, program: Any) -> None:
        program.tensor = torch.ones(10)
        # On the same storage, and no view: only the storage connects the two in C++.
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

    # Known places of library state are read first, which saves a walk over the heap.
    def everywhere(_: object, *, where_known: bool = False) -> list[Any]:
        return [] if where_known else pytest.fail("asked")

    monkeypatch.setattr(library_globals, "library_state", everywhere)
    monkeypatch.setattr(survey, "running_code", lambda: pytest.fail("asked"))
    fastpurge.sweep(keep=(), min_bytes=1 << 40)


def test_the_base_of_a_kept_view_needs_no_second_heap_walk(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = torch.arange(64).reshape(8, 8)  # C++ refers to its base
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
