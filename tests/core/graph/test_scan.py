"""The scan and the snapshot: one walk, objects matched by C type, no Python code run."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fastpurge import _core
from fastpurge._core import Libraries


class Base:
    pass


class Derived(Base):
    pass


class Other:
    pass


class Liar:
    """Claims to be a Base by `__class__`, and counts calls to its methods."""

    asked = 0

    def _ask(self) -> None:
        Liar.asked += 1

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        self._ask()
        return Base

    def __getattr__(self, name: str) -> NoReturn:
        Liar.asked += 1
        raise AttributeError(name)

    def __eq__(self, other: object) -> bool:
        self._ask()
        return True

    def __hash__(self) -> int:
        self._ask()
        return 1


def _snapshot(named: tuple[object, ...], libraries: Libraries, **options: Any) -> _core.Snapshot:
    options = {"roots": [], "scan_for": (Base,), "report": (Base,), **options}
    return _core.snapshot(named, options.pop("roots"), libraries=libraries, **options)


def test_finds_instances_and_instances_of_subtypes() -> None:
    a, b, other = Base(), Derived(), Other()
    found = _core.scan((Base,))
    assert any(x is a for x in found)
    assert any(x is b for x in found)
    assert all(type(x) in (Base, Derived) for x in found)
    assert any(x is other for x in _core.scan((Base, Other)))


def test_each_object_comes_once() -> None:
    objects = [Base() for _ in range(1000)]
    found = [id(x) for x in _core.scan((Base,))]
    assert sorted(found) == sorted(set(found))
    assert {id(x) for x in objects} <= set(found)


def test_no_foreign_code_is_run(libraries: Libraries) -> None:
    liar = Liar()
    Liar.asked = 0
    assert not any(type(x) is Liar for x in _core.scan((Base,)))
    snapshot = _snapshot(([liar], {"k": liar}), libraries, report=(Base, Liar))
    assert sum(type(x) is Liar for x in snapshot.kept) == 1
    assert sum(type(x) is Liar for x in _core.scan((Liar,))) == 1
    _core.library_globals((Base,), libraries=libraries, containers=(list, dict), depth=2)
    assert Liar.asked == 0
    assert isinstance(liar, Base)  # it does count when asked
    assert Liar.asked == 1


def test_no_method_of_a_metaclass_is_called(libraries: Libraries) -> None:
    class Meta(type):
        asked = 0

        def __instancecheck__(cls, instance: object) -> bool:
            Meta.asked += 1
            return True

        def __subclasscheck__(cls, subclass: type) -> bool:
            Meta.asked += 1
            return True

        def __getattribute__(cls, name: str) -> Any:
            Meta.asked += 1
            return super().__getattribute__(name)

    class Own(metaclass=Meta):
        pass

    own = Own()
    Meta.asked = 0
    found = _core.scan((Own,))
    snapshot = _snapshot((own,), libraries, scan_for=(Own,), report=(Own,))
    assert Meta.asked == 0
    assert len(found) == len(snapshot.kept) == 1
    assert found[0] is own


def test_what_only_the_boundary_reaches_is_a_candidate(libraries: Libraries) -> None:
    behind, beside = Base(), Base()
    stop = [behind]
    snapshot = _snapshot(((stop, beside),), libraries, boundary=[stop])
    assert [x is beside for x in snapshot.kept] == [True]
    assert any(x is behind for x in snapshot.candidates)
    named = _snapshot((stop,), libraries, boundary=[stop])
    assert [x is behind for x in named.kept] == [True]


def test_what_only_guarded_objects_reach_is_spared(libraries: Libraries) -> None:
    kept, guarded, loose = Base(), Base(), Base()
    snapshot = _snapshot((kept,), libraries, guarded=[[kept, guarded]])
    assert [x is guarded for x in snapshot.spared] == [True]
    assert {id(x) for x in snapshot.kept} == {id(kept), id(guarded)}
    assert any(x is loose for x in snapshot.candidates)
    assert not any(x is guarded for x in snapshot.candidates)


def test_what_is_kept_is_no_candidate(libraries: Libraries) -> None:
    kept, loose = Base(), Base()
    holder = Other()
    holder.held = {"deep": [kept]}  # type: ignore[attr-defined]
    snapshot = _snapshot((holder,), libraries)
    assert [x is kept for x in snapshot.kept] == [True]
    assert any(x is loose for x in snapshot.candidates)
    assert not any(x is kept for x in snapshot.candidates)
    assert snapshot.objects_scanned > 1000
    assert 4 <= len(snapshot.closure) < 1000


def test_further_roots_stop_at_boundaries_and_named_ones_do_not(libraries: Libraries) -> None:
    module = sys.modules[__name__]
    sentinel = Base()
    module.__dict__["SENTINEL"] = sentinel
    try:
        as_root = _snapshot((), libraries, roots=[module])
        as_named = _snapshot((module,), libraries)
    finally:
        del module.__dict__["SENTINEL"]
    assert any(x is sentinel for x in as_root.candidates)
    assert any(x is sentinel for x in as_named.kept)


def test_an_untracked_type_is_reported_if_listed(libraries: Libraries) -> None:
    # bytes takes no part in garbage collection, as a NumPy array does not.
    blob = bytes([1, 2, 3])
    snapshot = _snapshot(([blob, blob],), libraries, report=(bytes,))
    assert sum(x is blob for x in snapshot.kept) == 1


def test_one_snapshot_with_no_collection_inside(libraries: Libraries) -> None:
    # Garbage whose finalizer is Python code: a collection inside the call would run it.
    class Garbage(Base):
        finalized = 0

        def __del__(self) -> None:
            Garbage.finalized += 1

    roots: list[object] = []
    types = (Garbage,)
    threshold = gc.get_threshold()
    gc.disable()
    try:
        gc.set_threshold(1)
        garbage = Garbage()
        garbage.itself = garbage  # type: ignore[attr-defined]
        del garbage
        gc.enable()
        # Only the call makes objects that the collector tracks.
        snapshot = _core.snapshot((), roots, scan_for=types, report=types, libraries=libraries)
        seen = len(snapshot.candidates)
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
    assert seen == 1
    del snapshot
    gc.collect()
    assert Garbage.finalized == 1


def test_a_disabled_collector_stays_disabled(libraries: Libraries) -> None:
    gc.disable()
    try:
        _snapshot((), libraries)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_types_only_are_scanned_for() -> None:
    with pytest.raises(TypeError):
        _core.scan((3,))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _core.scan([int])  # type: ignore[arg-type]


def test_the_stream_is_the_best_that_this_python_has() -> None:
    expected = "visitor" if sys.version_info >= (3, 12) else "list"
    assert _core.object_stream() == expected


def test_the_visitor_builds_no_list_of_all_objects() -> None:
    # Peaks of the Python allocator and of the resident set, in a new process.
    program = """
        import gc, tracemalloc
        from pathlib import Path
        from fastpurge import _core
        def peak():
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) * 1024
        class Base: pass
        heap = [[i] for i in range(2_000_000)]
        gc.collect()
        count = len(gc.get_objects())
        gc.collect()
        tracemalloc.start()
        _core.scan((Base,))
        python_peak = tracemalloc.get_traced_memory()[1]
        print(count, python_peak)
        tracemalloc.stop()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    count, python_peak = map(int, done.stdout.split())
    if _core.object_stream() == "visitor":
        assert python_peak < 100_000
    else:
        assert python_peak > 8 * count  # what a list costs: the measurement does see it


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_resident_peak_of_a_scan_does_not_grow_with_the_heap() -> None:
    program = """
        from pathlib import Path
        import gc, sys
        from fastpurge import _core
        class Base: pass
        heap = [[i] for i in range(2_000_000)]
        gc.freeze(); gc.unfreeze()
        def field(name):
            return int(Path("/proc/self/status").read_text().split(name)[1].split()[0]) * 1024
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
        before = field("VmRSS:")
        _core.scan((Base,))
        print(field("VmHWM:") - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    grown = int(done.stdout)
    if _core.object_stream() == "visitor":
        assert grown < 4 << 20
    else:
        assert grown > 8 << 20


def test_trim_returns_the_mechanism() -> None:
    assert _core.trim_heap() in ("malloc_trim", "malloc_zone_pressure_relief", "HeapCompact", None)
    if sys.platform == "linux" and "glibc" in " ".join(map(str, __import__("platform").libc_ver())):
        assert _core.trim_heap() == "malloc_trim"


@pytest.mark.parametrize(("enabled", "loads"), [(True, True), (False, False)])
def test_an_interpreter_whose_gil_is_off_is_refused(enabled: bool, loads: bool) -> None:
    # A free-threaded build returns False with PYTHON_GIL=0; other builds return True, or lack the function.
    program = f"import sys; sys._is_gil_enabled = lambda: {enabled}; import fastpurge._core"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is loads, done.stderr
    assert ("ImportError: fastpurge needs the GIL" in done.stderr) is not loads
