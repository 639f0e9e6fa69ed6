"""keep -> closure -> scan -> guards: what a sweep would release, and why it would leave the rest.

While a snapshot looks for what running code uses, no local variable here may reference a candidate: see
`snapshots.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from fastpurge import _core
from fastpurge.engine.candidates import Candidate, candidate_may_have_numpy_array, count_storages_once
from fastpurge.engine.guards import Guard
from fastpurge.engine.request import Request
from fastpurge.engine.snapshots import Search, View
from fastpurge.python_facts import library_globals
from fastpurge.python_facts.object_types import is_a, reason_of
from fastpurge.python_facts.running_code import running_code
from fastpurge.reporting.items import Item
from fastpurge.torch_facts import address_readers, compiled, cpp_callbacks, cpp_owners, hidden_references
from fastpurge.torch_facts.autograd import BackwardUnderWayError
from fastpurge.torch_facts.memory_ranges import MemoryRangeSet
from fastpurge.torch_facts.recorders import suspended_modes
from fastpurge.torch_facts.tensors import OWNED_TENSORS_REFERENCE_THEMSELVES


@dataclass(slots=True)
class Survey:
    """The result of a survey: what would be released, skipped and spared (in bytes, by guard)."""

    objects_scanned: int
    planned: list[Candidate]
    skipped: list[Item]
    spared: dict[str, int]
    _search: Search

    def exchange(self, blanks: list[object]) -> list[tuple[int, BaseException | None]]:
        """Swap each planned object with its tombstone, unless one has come into use or cannot be swapped.

        Returns those as pairs of an index and an exception, or ``None`` for one in use. If there are any, no
        object was swapped.
        """
        return self._search.exchange(self.planned, blanks)

    def keep(self, objects: Iterable[object]) -> None:
        """Protect objects, and everything reachable from them, from a later exchange."""
        self._search.add(objects)

    def has_new_owned_tensors(self) -> bool:
        """Whether there are tensors with an owner in C++ that had no Python object before the survey."""
        return self._search.has_new_owned_tensors

    def tensors_with_memory(self) -> list[torch.Tensor]:
        """The planned tensors that have memory of their own."""
        return [candidate.obj for candidate in self.planned if candidate.memory_range is not None]


def survey(request: Request) -> Survey:
    """Find what can be released. Touches nothing.

    To read a graph makes Python objects of the tensors that only C++ owned, and these stay as long as their
    owner. They are not candidates of the survey that made them, so then a second one is made: with what it
    finds, a plan and the sweep after it agree.
    """
    found = survey_once(request)
    if not found.has_new_owned_tensors():
        return found
    del found  # or everything in it would be in use
    return survey_once(request)


def survey_once(request: Request, *, thorough: bool = True) -> Survey:
    """Find what can be released, of the tensors and modules that have a Python object.

    The cheapest guards run first, and only while candidates remain. If not ``thorough``, nothing looks for
    what running code and C code use: then the planned objects may still be in use.
    """
    search = Search(request)
    view = search.first_view()
    spared: dict[str, int] = {}
    try:
        view = _without_protected(search, search.settle(view), spared, thorough=thorough)
    except BackwardUnderWayError:
        view.skip([True] * len(view.asked), "another thread is inside a backward: kept graphs cannot be read")
    except Exception as error:
        if is_a(error, MemoryError):
            raise
        # Torch or another library differs from what this code knows, so nothing is known to be unused.
        view.skip([True] * len(view.asked), f"what is in use cannot be read ({reason_of(error)})")
        error.__traceback__ = None  # its frames reference this survey
    view.skip([search.is_sorting] * len(view.asked), "a kept list is being sorted and cannot be read")
    count_storages_once(view.asked)
    skipped, scanned = [one.item for one in view.skipped], view.snapshot.objects_scanned
    return Survey(scanned, view.asked, skipped, spared, search)


def _without_protected(search: Search, view: View, spared: dict[str, int], *, thorough: bool) -> View:
    """Run the guards, count what each spares, and skip what cannot be released."""
    _count_spared(Guard.LIBRARY, search.spared_at_first(), spared)
    view = _ask(_QUICK, search, view, spared)
    if thorough:
        view = _ask(_THOROUGH, search, view, spared)
        if view.asked and Guard.RUNNING not in search.request.guards:
            _skip_externally_referenced(search, view)
    if view.asked:
        _skip_exported(search, view)
    view.skip(search.may_be_gradients(view.asked), "another thread is inside a backward: may be a gradient")
    if view.asked and view.skipped:
        view = _skip_parts(search, view)
    return view


def _ask(stages: Iterable[tuple[Guard, Any]], search: Search, view: View, spared: dict[str, int]) -> View:
    """Run guards while candidates remain, and count what each spares."""
    for guard, spare in stages:
        if view.asked and guard in search.request.guards:
            view = _apply(guard, spare, search, view, spared)
    return view


def _apply(guard: Guard, spare: Any, search: Search, view: View, spared: dict[str, int]) -> View:
    """Run one guard until it spares nothing more, and count the bytes that it spared.

    What it spares may reference more that it has to spare.
    """
    while view.asked and spare(search, view):
        if not view.skipped and search.has_as_roots(view.asked):
            _count_spared(guard, view.asked, spared)
            return View(view.snapshot)  # the same as a new snapshot would find, without a walk over the heap
        after = search.new_view()
        left = _core.IdSet(after.asked)
        gone, view = [one for one in view.asked if one not in left], after
        if not gone:
            break
        _count_spared(guard, gone, spared, after.snapshot)
    return view


def _count_spared(
    guard: Guard,
    candidates: list[Candidate],
    spared: dict[str, int],
    snapshot: _core.Snapshot | None = None,
) -> None:
    """Add the bytes that a guard spared, under its name or under that of a known owner in C or C++."""
    owners: list[str | None] = [None] * len(candidates)
    if guard is Guard.RUNNING and snapshot is not None:
        among = chain(snapshot.kept, snapshot.candidates)
        owners = cpp_owners.names_of([one.obj for one in candidates], among)
    for name in dict.fromkeys(owners):
        those = [one for one, owner in zip(candidates, owners, strict=True) if owner == name]
        sizes = {one.memory_range or id(one): one.item.nbytes for one in those}
        key = name or str(guard.name).lower()
        spared[key] = spared.get(key, 0) + sum(sizes.values())


def _spare_graphs(search: Search, view: View) -> bool:
    search.graphs = True
    return search.add_hidden(view.snapshot.kept, view.snapshot.kept_by_running_code)


def _spare_callbacks(search: Search, view: View) -> bool:
    """Spares callbacks if a graph is in use; otherwise they belong to graphs that may be released."""
    in_use = hidden_references.any_graph(view.snapshot.kept, view.snapshot.kept_by_running_code)
    return in_use and search.add(cpp_callbacks.callbacks())


def _spare_library_state(search: Search, view: View) -> bool:
    unkept, found = _core.IdSet(view.snapshot.candidates), library_globals.library_state(search.scan_for)
    state = (obj for obj in found if obj in unkept or not is_a(obj, torch.Tensor, torch.nn.Module))
    return search.add(chain(state, compiled.captured()))


def _spare_what_moved(search: Search, view: View) -> bool:
    """Spares what another thread has moved into a library after libraries were read."""
    if search.is_alone:
        return False
    read = _spare_read_by_graphs(search, view)
    return _spare_library_state(search, view) or read


def _spare_aliases(search: Search, view: View) -> bool:
    memory = MemoryRangeSet(
        hidden_references.memory_ranges([*view.snapshot.kept, *view.snapshot.kept_by_running_code])
    )
    return search.add(one.obj for one in view.asked if one.memory_range and memory.overlaps(one.memory_range))


def _spare_read_by_graphs(search: Search, view: View) -> bool:
    """Spares all memory that a recorded graph can read, because the graph does not tell what it reads."""
    replayed = address_readers.device_types_with_graphs()
    read = (
        one.obj
        for one in view.asked
        if address_readers.may_be_read_by_graph(one.obj, one.item.device, replayed)
    )
    return bool(replayed) and search.add(read)


def _spare_running(search: Search, _: View) -> bool:
    if search.running_code is not None:
        return False
    search.running_code = running_code()
    search.add(suspended_modes())
    return True


_QUICK = (
    (Guard.AUTOGRAD, _spare_graphs),
    (Guard.ALIAS, _spare_aliases),
    (Guard.LIBRARY, _spare_library_state),
    (Guard.ALIAS, _spare_read_by_graphs),
)

# These count the references to all objects. Aliases run again at the end, for what the guards before have
# spared.
_THOROUGH = (
    (Guard.RUNNING, _spare_running),
    (Guard.LIBRARY, _spare_what_moved),
    (Guard.AUTOGRAD, _spare_callbacks),
    (Guard.ALIAS, _spare_aliases),
)


def _skip_externally_referenced(search: Search, view: View) -> None:
    """Without `Guard.RUNNING`, skip what would be read after its memory is freed.

    That is a tensor whose memory a NumPy array reads: `Tensor.numpy` makes a tensor the base of the array and
    the storage not resizable, and nothing else connects the two (torch/csrc/utils/tensor_numpy.cpp). If other
    threads run, also what one of them may be computing with; before torch 2.10, also what C++ alone may own.
    All of these have external references.
    """
    if (alone := search.is_alone and OWNED_TENSORS_REFERENCE_THEMSELVES) and not any(
        map(candidate_may_have_numpy_array, view.asked)
    ):
        return
    search.running_code = running_code(look_through=False)
    after = search.new_view()
    held, left = _core.IdSet(after.snapshot.externally_referenced), _core.IdSet(after.asked)
    stays = [
        (one.obj in held and candidate_may_have_numpy_array(one)) if alone else one not in left
        for one in view.asked
    ]
    view.skip(stays, "has an external reference (from running code, NumPy, or C++)")


def _skip_exported(search: Search, view: View) -> None:
    """Skip tensors whose memory an array of another library reads by its address."""
    if search.add(address_readers.exported_tensors()):
        left = _core.IdSet(search.new_view().asked)
        stays = [one not in left for one in view.asked]
        view.skip(stays, "an array of another library reads its memory")


def _skip_parts(search: Search, view: View) -> View:
    """Skip what is reachable from a skipped object, which has to stay whole."""
    search.add(one.obj for one in view.skipped)
    after = search.new_view()
    left = _core.IdSet(after.asked)
    view.skip([one not in left for one in view.asked], "a part of something that cannot be released")
    return View(after.snapshot, view.asked, view.skipped)
