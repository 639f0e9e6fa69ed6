"""`census` counts live memory once, and lists its owners."""

from __future__ import annotations

import gc
import json
import sys
import threading
import types
import weakref
from typing import Any

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge import census
from fastpurge.inspection.census import Census, Share
from fastpurge.torch_facts.memory_ranges import MemoryRange, MemoryRangeSet
from hypothesis import given
from hypothesis import strategies as st

MiB = 2**20


pytestmark = pytest.mark.usefixtures("collector_off")


def _share(shares: tuple[Share, ...], name: str) -> Share:
    return next((share for share in shares if share.name == name), Share(name, 0, 0))


def _more(after: Census, before: Census, by: str, name: str) -> tuple[int, int]:
    """The number of new objects, and their bytes."""
    one, two = _share(getattr(before, by), name), _share(getattr(after, by), name)
    return two.count - one.count, two.nbytes - one.nbytes


def _held(program: Any, found: Census) -> Share:
    return _share(found.by_holder, program.__name__)


def test_the_contents_of_a_module_are_counted_under_it(program: Any) -> None:
    program.cache = {"sdxl": [torch.ones(1000, 1000)]}
    found = census()
    assert _held(program, found) == Share(program.__name__, 1, 4_000_000)
    [largest] = [one for one in found.largest if one.holder == program.__name__]
    assert largest.path == f"{program.__name__}.cache['sdxl'][0]"
    assert (largest.kind, largest.type_name, largest.dtype) == ("tensor", "Tensor", "float32")
    assert (largest.shape, largest.device, largest.nbytes) == ((1000, 1000), "cpu", 4_000_000)
    assert largest.owner == "(global)"


def test_memory_with_several_aliases_counts_once(program: Any) -> None:
    program.base = torch.ones(1000, 1000)
    program.views = [
        program.base[1:],
        program.base.t(),
        program.base.detach(),
        program.base.view(torch.uint8),
    ]
    program.array = program.base.numpy()
    program.views += [program.array[3:], program.array.T]
    referent = _held(program, census())
    assert referent.nbytes == 4_000_000
    assert referent.count >= 8


def test_arrays_are_found_through_their_owners(program: Any) -> None:
    before = census()
    program.raw = {"a": (np.ones((1000, 1000)),)}
    program.views = [program.raw["a"][0][5:], program.raw["a"][0].T]
    found = census()
    assert _held(program, found) == Share(program.__name__, 3, 8_000_000)
    assert _more(found, before, "by_dtype", "float64") == (3, 8_000_000)
    assert [one.kind for one in found.largest if one.holder == program.__name__] == ["array"]


def test_an_array_referenced_only_by_a_view_is_counted_through_the_view(program: Any) -> None:
    program.view = np.ones((1000, 1000))[10:, 10:]
    referent = _held(program, census())
    assert referent.nbytes == 8_000_000
    assert referent.count in (1, 2)


def test_memory_that_overlaps_counts_once(program: Any) -> None:
    program.array = np.ones(1_000_000, dtype=np.float32)
    program.corner = torch.from_numpy(program.array[:100])
    program.slices = [torch.from_numpy(program.array[at * 1000 : -1]) for at in range(16)]
    program.bytes = bytearray(1_000_000)
    program.buffers = [np.frombuffer(program.bytes, dtype=np.uint8, offset=at) for at in (0, 10, 500_000)]
    assert _held(program, census()).nbytes == 5_000_000


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=20))
def test_overlapping_ranges_count_their_new_part_only(added: list[tuple[int, int]]) -> None:
    ranges, there = MemoryRangeSet(), set[int]()
    for start, length in added:
        new = {*range(start, start + length)} - there
        assert ranges.add(MemoryRange("cpu", start, start + length)) == len(new)
        there |= new


def test_the_owner_of_parameters_is_the_type_of_their_module(program: Any) -> None:
    before = census()
    program.model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.LayerNorm(100))
    found = census()
    assert _more(found, before, "by_owner", "Linear") == (2, 40_400)
    assert _more(found, before, "by_owner", "LayerNorm") == (2, 800)


def test_a_gradient_has_the_owner_of_its_parameter(program: Any) -> None:
    program.model = torch.nn.Linear(100, 100)
    without = _held(program, census())
    program.model(torch.ones(1, 100)).sum().backward()
    assert _held(program, census()) == Share(program.__name__, without.count + 2, 2 * without.nbytes)


def test_the_owner_of_a_local_is_the_module_of_its_function() -> None:
    latent = torch.ones(1000, 1000)
    found = census()
    [largest] = [one for one in found.largest if one.holder == __name__]
    assert (largest.owner, largest.path, largest.nbytes) == ("(local)", "latent", latent.nbytes)


def test_objects_of_a_library_are_listed_under_its_name(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = census()
    monkeypatch.setattr(torch.nn.functional, "_cache_of_a_test", torch.ones(1000, 1000), raising=False)
    assert _more(census(), before, "by_holder", "torch") == (1, 4_000_000)


def _garbage() -> None:
    cycle: list[Any] = [torch.ones(1000, 1000)]
    cycle.append(cycle)


def test_uncollected_garbage_is_listed_separately() -> None:
    gc.collect()  # other tests have left garbage too
    before = census().garbage
    _garbage()
    found = census()
    assert (found.garbage.count - before.count, found.garbage.nbytes - before.nbytes) == (1, 4_000_000)
    assert [one.path for one in found.largest if one.holder == "garbage"] == [None]
    gc.collect()
    assert census().garbage.nbytes == before.nbytes


def test_objects_with_external_references_are_no_garbage() -> None:
    before = census()
    _, found = [torch.ones(1000, 1000)], census()
    assert found.garbage == before.garbage
    assert _more(found, before, "by_holder", "C or C++ code") == (1, 4_000_000)


def test_percentages_of_owners_add_up(program: Any) -> None:
    program.things = [torch.ones(10), np.ones(20), torch.ones(3).to_sparse(), torch.empty(4, device="meta")]
    found = census()
    for shares in (found.by_device, found.by_dtype, found.by_owner, found.by_holder):
        assert sum(share.count for share in shares) == found.count
        assert sum(share.nbytes for share in shares) == found.nbytes
        assert list(shares) == sorted(shares, key=lambda share: -share.nbytes)
    assert _share(found.by_device, "meta").nbytes == 0
    assert found.devices["cpu"].live == _share(found.by_device, "cpu").nbytes
    assert found.devices["cpu"].reserved > 50 * MiB


@pytest.mark.imports_much
def test_objects_that_cannot_be_described_are_counted(program: Any) -> None:
    class Mute(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, *_: Any) -> Any:
            raise AssertionError("asked")

    make: Any = torch.Tensor._make_wrapper_subclass
    program.mute = make(Mute, (3,), dispatch_sizes_strides_policy="sizes", dispatch_device=True)
    assert _held(program, census()).count == 1


def test_a_tombstone_is_not_alive(program: Any) -> None:
    program.tensor = torch.ones(1000, 1000)
    fastpurge.sweep(keep=())
    assert _held(program, census()).count == 0


def test_foreign_objects_in_the_list_of_threads_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(threading._active, -1, object())  # type: ignore[attr-defined]
    assert fastpurge.census().nbytes >= 0


def test_a_census_keeps_nothing_alive() -> None:
    tensor, model = torch.ones(1000, 1000), torch.nn.Linear(3, 3)
    gone: list[Any] = [weakref.ref(tensor), weakref.ref(model), weakref.ref(model.weight)]
    found = census()
    del tensor, model
    assert found.count > 0
    assert [one() for one in gone] == [None, None, None]


def test_top_limits_the_listed_owners(program: Any) -> None:
    program.things = [torch.ones(1000, 100 + at) for at in range(8)]
    assert len(census(top=3).largest) == 3
    assert census(top=0).largest == ()
    sizes = [one.nbytes for one in census(top=50).largest]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) >= 8


@pytest.mark.parametrize("top", ["3", None, 2.0, True])
def test_top_of_another_type_is_refused(top: Any) -> None:
    with pytest.raises(TypeError, match="top must be an int"):
        census(top=top)


def test_top_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="top must be 0 or more, not -1"):
        census(top=-1)


def test_it_can_be_printed_shown_and_stored(program: Any) -> None:
    program.cache = {"sdxl": [torch.ones(1000, 1000)]}
    found = census(top=5)
    text = str(found)
    assert f"{program.__name__}.cache['sdxl'][0]" in text
    assert "garbage that is not collected yet" in text
    assert "cpu (resident)" in text
    assert "float32" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert f"{program.__name__}.cache" in found._repr_html_()
    data = json.loads(json.dumps(found.to_dict()))
    assert data["nbytes"] == found.nbytes
    assert data["largest"][0]["path"] == found.largest[0].path
    assert data["devices"]["cpu"]["reserved"] == found.devices["cpu"].reserved


def test_many_owners_are_summed_up(program: Any) -> None:
    for at in range(14):
        name = f"forgetful_part_{at}"
        part: Any = types.ModuleType(name)
        part.tensor = torch.ones(1000, at + 1)
        setattr(program, name, part)
        sys.modules[name] = part
    try:
        text = str(census())
    finally:
        for at in range(14):
            del sys.modules[f"forgetful_part_{at}"]
    assert "forgetful_part_13" in text
    assert " more " in text
