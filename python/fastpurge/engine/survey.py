"""keep -> closure -> scan -> guards: what a sweep would release, and why it would leave the rest.

While a snapshot is taken that looks for what running code holds, no local variable here may hold a
candidate: see `snapshots.py`.
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
from fastpurge.torch_facts.tensors import OWNED_TENSORS_HOLD_THEMSELVES


@dataclass(slots=True)
class Survey:
    """The state of the heap as a sweep sees it."""

    objects_scanned: int
    planned: list[Candidate]
    skipped: list[Item]
    spared: dict[str, int]
    _search: Search

    def exchange(self, blanks: list[object]) -> list[tuple[int, BaseException | None]]:
        """Exchange each planned object with a blank, if none is in use by now and none refuses.

        Returns those that are or do, by their index, with the exception if there is one. Then all of
        them are as before.
        """
        return self._search.exchange(self.planned, blanks)

    def keep(self, objects: Iterable[object]) -> None:
        """Protect objects, and what they reach, from a later exchange."""
        self._search.add(objects)

    def tensors_with_memory(self) -> list[torch.Tensor]:
        """The tensors among the planned that stand on memory of their own."""
        return [candidate.obj for candidate in self.planned if candidate.memory_range is not None]


def survey(request: Request, *, thorough: bool = True) -> Survey:
    """Find what can be released. Touches nothing.

    The guards are asked the cheapest first, and only while candidates remain. If not ``thorough``,
    what running code and C code hold is left out: what is found may be in their hands.
    """
    search = Search(request)
    view = search.first_look()
    spared: dict[str, int] = {}
    try:
        view = _without_protected(search, search.settle(view), spared, thorough=thorough)
    except BackwardUnderWayError:
        view.skip([True] * len(view.asked), "another thread is inside a backward: kept graphs cannot be read")
    except Exception as error:
        if is_a(error, MemoryError):
            raise
        # Something in torch or in another library is not made as it is known here: nobody can tell.
        view.skip([True] * len(view.asked), f"what is in use cannot be read ({reason_of(error)})")
        error.__traceback__ = None  # its frames hold this survey
    view.skip([search.is_sorting] * len(view.asked), "a list that is kept is being sorted, and shows nothing")
    count_storages_once(view.asked)
    skipped, scanned = [one.item for one in view.skipped], view.snapshot.objects_scanned
    return Survey(scanned, view.asked, skipped, spared, search)


def _without_protected(search: Search, view: View, spared: dict[str, int], *, thorough: bool) -> View:
    """Ask the guards, count what each of them spares, and skip what cannot be released."""
    _count_spared(Guard.LIBRARY, search.spared_at_first(), spared)
    view = _ask(_QUICK, search, view, spared)
    if thorough:
        view = _ask(_THOROUGH, search, view, spared)
        if view.asked and Guard.RUNNING not in search.request.guards:
            _skip_held(search, view)
    if view.asked:
        _skip_borrowed(search, view)
    view.skip(search.may_be_gradients(view.asked), "another thread is inside a backward: may be a gradient")
    if view.asked and view.skipped:
        view = _skip_parts(search, view)
    return view


def _ask(stages: Iterable[tuple[Guard, Any]], search: Search, view: View, spared: dict[str, int]) -> View:
    """Ask guards while candidates remain, and count what each of them spares."""
    for guard, spare in stages:
        if view.asked and guard in search.request.guards:
            view = _apply(guard, spare, search, view, spared)
    return view


def _apply(guard: Guard, spare: Any, search: Search, view: View, spared: dict[str, int]) -> View:
    """Let one guard spare what it will, and count the bytes that it spared.

    What is spared may call for more: it is asked again until it adds nothing.
    """
    while view.asked and spare(search, view):
        if not view.skipped and search.has_as_roots(view.asked):
            _count_spared(guard, view.asked, spared)
            return View(view.snapshot)  # as a look would find, which takes a walk over the heap
        after = search.look()
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
    """Count what a guard spared; if C++ holds that, and who that is is known, under its name."""
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
    return search.add_hidden(view.snapshot.kept)


def _spare_callbacks(search: Search, view: View) -> bool:
    """Of no use if no graph is in use: then the callbacks are those of a graph that may go as well."""
    in_use = hidden_references.any_graph(view.snapshot.kept, view.snapshot.running)
    return in_use and search.add(cpp_callbacks.callbacks())


def _spare_library_state(search: Search, view: View) -> bool:
    unkept, found = _core.IdSet(view.snapshot.candidates), library_globals.library_state(search.scan_for)
    state = (obj for obj in found if obj in unkept or not is_a(obj, torch.Tensor, torch.nn.Module))
    return search.add(chain(state, compiled.captured()))


def _spare_what_moved(search: Search, view: View) -> bool:
    """What was in no library yet when libraries were looked into, and is in no thread's hands any more."""
    if search.is_alone:
        return False
    read = _spare_read_by_graphs(search, view)
    return _spare_library_state(search, view) or read


def _spare_aliases(search: Search, view: View) -> bool:
    memory = MemoryRangeSet(hidden_references.memory_ranges([*view.snapshot.kept, *view.snapshot.running]))
    return search.add(one.obj for one in view.asked if one.memory_range and memory.overlaps(one.memory_range))


def _spare_read_by_graphs(search: Search, view: View) -> bool:
    """What a graph reads it does not say, so whatever is where it can read counts as read."""
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

# These count references, of all objects. Aliases once more at the end: what libraries and running code hold
# stands on memory too.
_THOROUGH = (
    (Guard.RUNNING, _spare_running),
    (Guard.LIBRARY, _spare_what_moved),
    (Guard.AUTOGRAD, _spare_callbacks),
    (Guard.ALIAS, _spare_aliases),
)


def _skip_held(search: Search, view: View) -> None:
    """Skip what must not be released although no guard spares it: memory would be read after its end.

    A tensor that a NumPy array stands on: `Tensor.numpy` makes a tensor the base of the array and the
    storage unresizable, and nothing else ties the two together (torch/csrc/utils/tensor_numpy.cpp). And,
    if other threads run, what any of them may be inside an operation on; or, if this torch is such,
    what may be owned by C++ alone. All are known by a reference that no visible object accounts for.
    """
    if (alone := search.is_alone and OWNED_TENSORS_HOLD_THEMSELVES) and not any(
        map(candidate_may_have_numpy_array, view.asked)
    ):
        return
    search.running_code = running_code(look_through=False)
    after = search.look()
    held, left = _core.IdSet(after.snapshot.held), _core.IdSet(after.asked)
    stays = [
        (one.obj in held and candidate_may_have_numpy_array(one)) if alone else one not in left
        for one in view.asked
    ]
    view.skip(stays, "held from outside the garbage collector's sight (by running code, NumPy, or C++)")


def _skip_borrowed(search: Search, view: View) -> None:
    """Skip what an array of another library reads by its address, whoever holds that array."""
    if search.add(address_readers.exported_tensors()):
        left = _core.IdSet(search.look().asked)
        stays = [one not in left for one in view.asked]
        view.skip(stays, "an array of another library reads its memory")


def _skip_parts(search: Search, view: View) -> View:
    """Skip what is reached by something that is skipped: that must stay whole."""
    search.add(one.obj for one in view.skipped)
    after = search.look()
    left = _core.IdSet(after.asked)
    view.skip([one not in left for one in view.asked], "a part of something that cannot be released")
    return View(after.snapshot, view.asked, view.skipped)
