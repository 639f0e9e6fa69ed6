"""keep -> closure -> scan -> guards: what a sweep would release, and why it would leave the rest.

A rule for this file: while a snapshot is taken that looks for what running code holds, no local
variable here may hold a candidate, or a plain container of candidates. This is running code too.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, cast

import torch
from torch._C import DisableTorchFunction

from fastpurge import _core, addresses, compiled, cpp_owners, guards, keep
from fastpurge.autograd import BackwardUnderWayError
from fastpurge.candidates import Candidate, consider, count_storages_once, may_be_lent
from fastpurge.guards import Guard, MemoryMap
from fastpurge.library_folders import libraries
from fastpurge.named import named
from fastpurge.recorders import suspended_modes
from fastpurge.report import Item
from fastpurge.request import Request
from fastpurge.running_code import running_code
from fastpurge.tensors import OWNED_TENSORS_HOLD_THEMSELVES, has_cpp_owner, is_a, reason_of, use_count


@dataclass(slots=True)
class Survey:
    """The state of the heap as a sweep sees it."""

    objects_scanned: int
    planned: list[Candidate]
    skipped: list[Item]
    spared: dict[str, int]
    _search: "_Search"

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
        return [candidate.obj for candidate in self.planned if candidate.extent is not None]


def survey(request: Request, *, thorough: bool = True) -> Survey:
    """Find what can be released. Touches nothing.

    The guards are asked the cheapest first, and only while candidates remain. If not ``thorough``,
    what running code and C code hold is left out: what is found may be in their hands.
    """
    search = _Search(request)
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


@dataclass(slots=True)
class _View:
    """One snapshot, and what of it the request asks for."""

    snapshot: _core.Snapshot
    asked: list[Candidate] = field(default_factory=list)
    skipped: list[Candidate] = field(default_factory=list)

    def skip(self, which: list[bool], reason: str) -> None:
        """Skip some of what is asked for, for a reason."""
        pairs = list(zip(self.asked, which, strict=True))
        self.skipped += [Candidate(one.obj, replace(one.item, reason=reason)) for one, yes in pairs if yes]
        self.asked = [one for one, yes in pairs if not yes]


_IDLE_ROUNDS = 2
_set_class = cast(Any, object.__dict__["__class__"]).__set__


class _Search:
    """Takes snapshots, each with the roots that those before it brought to light."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.scan_for = (torch.Tensor, torch.nn.Module) if request.models else (torch.Tensor,)
        self.graphs = self.is_sorting = self._gradients_unread = False
        self.running_code: _core.RunningCode | None = None
        self._named = named(request.keep)
        self._roots: list[Any] = []
        self._known, self._owned = _core.IdSet(), _core.IdSet()
        self._considered: dict[int, Candidate | None] = {}
        self.is_alone = len(sys._current_frames()) == 1  # as it stays: this thread starts none
        # Most often libraries keep what they kept before, and then one look is enough.
        library = Guard.LIBRARY in request.guards
        state = guards.library_state(self.scan_for, where_known=True) if library else []
        # What came into being since is nobody's garbage yet; the first snapshot keeps its own alive.
        self._first = self._snapshot(guarded=state)
        self._there = self._unused = _core.IdSet(chain(self._first.candidates, self._first.spared))
        self.add(state)

    def first_look(self) -> _View:
        """What there is, before anything was asked what it hides."""
        return self._view_of(self._first)

    def spared_at_first(self) -> list[Candidate]:
        """What was asked for, and is spared because libraries are known to keep it."""
        found = (self._consider(obj) for obj in self._first.spared)
        return [one for one in found if one is not None and one.item.reason is None]

    def look(self) -> _View:
        """What there is with the roots that are known now."""
        return self.settle(self._view())

    def settle(self, view: _View) -> _View:
        """Take snapshots until one brings no hidden root to light that was not known.

        While other threads compute there is always a new one. So it also ends when twice in a row what
        came to light protected no candidate: a chain of hidden things that leads to one has candidates
        for its links, or is not longer than that.
        """
        idle = 0
        while view.asked and idle < _IDLE_ROUNDS and self.add_hidden(view.snapshot.kept):
            after = self._view()
            left = _core.IdSet(after.asked)
            idle = 0 if any(one not in left for one in view.asked) else idle + 1
            view = after
        return view

    def add(self, roots: Iterable[Any]) -> bool:
        """Make these roots of every later snapshot; whether any was new."""
        before = len(self._roots)
        for root in roots:
            if root not in self._known:
                self._known.add(root)
                self._roots.append(root)
        return len(self._roots) > before

    def has_as_roots(self, candidates: list[Candidate]) -> bool:
        """Whether none of them can be a candidate any more."""
        return all(one.obj in self._known for one in candidates)

    def add_hidden(self, kept: list[Any]) -> bool:
        """Make roots of what kept objects hold out of the closure's sight; whether any was new."""
        gradients = keep.gradients(kept)
        self._gradients_unread |= gradients is None
        return self.add(chain(keep.hidden(kept, graphs=self.graphs), gradients or ()))

    def may_be_gradients(self, candidates: list[Candidate]) -> list[bool]:
        """Which of them may be the gradient of something kept, because there was no way to ask."""
        return [self._gradients_unread and has_cpp_owner(one.obj) for one in candidates]

    def exchange(
        self, candidates: list[Candidate], blanks: list[object]
    ) -> list[tuple[int, BaseException | None]]:
        """Exchange candidates with blanks, as `Survey.exchange` says."""
        look_through = Guard.RUNNING in self.request.guards
        with DisableTorchFunction():  # `use_count` is called
            return _core.exchange(
                self._named,
                self._roots,
                [one.obj for one in candidates],
                blanks,
                scan_for=self.scan_for,
                libraries=libraries(),
                running_code=running_code(look_through=look_through),
                self_held=self._hold_themselves(),
                owners=use_count,
                spare_held=look_through or not OWNED_TENSORS_HOLD_THEMSELVES,
                set_class=_set_class,
                implementation=(torch.Tensor, torch._C._swap_tensor_impl),
            )

    def _view(self) -> _View:
        snapshot = self._snapshot()
        while snapshot.held and self._explain(snapshot):
            snapshot = self._snapshot()
        return self._view_of(snapshot)

    def _view_of(self, snapshot: _core.Snapshot) -> _View:
        view = _View(snapshot)
        for obj in snapshot.candidates:
            if obj not in self._there:
                continue
            if (candidate := self._consider(obj)) is not None:
                (view.skipped if candidate.item.reason else view.asked).append(candidate)
        if self.running_code is not None:
            # What was in the hands of a thread at one look may be anywhere by the next.
            view.asked = [one for one in view.asked if one.obj in self._unused]
            self._unused = _core.IdSet(one.obj for one in view.asked)
        return view

    def _snapshot(self, guarded: list[Any] | None = None) -> _core.Snapshot:
        snapshot = _core.snapshot(
            self._named,
            self._roots,
            guarded=guarded or [],
            scan_for=self.scan_for,
            report=keep.reported_types(),
            libraries=libraries(),
            running_code=self.running_code,
            self_held=self._hold_themselves(),
        )
        self.is_sorting |= snapshot.sorting
        return snapshot

    def _explain(self, snapshot: _core.Snapshot) -> bool:
        """Find those of the held that only hold themselves; whether there are new ones.

        A tensor that something in C++ owns holds a reference to its own Python object
        (https://github.com/pytorch/pytorch/pull/167564). The use count alone does not tell: a thread that
        is just becoming an owner has counted itself, and waits for the GIL to take that reference. With
        an owner that does not go away there is no such moment. So the owners are looked for, among
        tensors that no running code holds and that this survey keeps alive.

        Before torch 2.10 the owner in C++ holds the Python object of a tensor. To ask the owner for it is to
        take that reference over (`THPVariable_Wrap` in torch/csrc/autograd/python_variable.cpp), so while
        the first snapshot holds it as well nothing holds itself: any further reference is a use.
        """
        held = _core.IdSet(snapshot.held)
        unkept = (x for x in snapshot.candidates if x in self._there)
        known = len(self._owned)
        self._owned.update(x for x in keep.owned([*unkept, *snapshot.kept]) if x in held)
        return len(self._owned) > known

    def _hold_themselves(self) -> _core.IdSet:
        return self._owned if OWNED_TENSORS_HOLD_THEMSELVES else _core.IdSet()

    def _consider(self, obj: Any) -> Candidate | None:
        # The first snapshot holds every candidate, so its identity stays its own.
        if id(obj) not in self._considered:
            self._considered[id(obj)] = consider(obj, self.request)
        return self._considered[id(obj)]


def _without_protected(search: _Search, view: _View, spared: dict[str, int], *, thorough: bool) -> _View:
    """Ask the guards, count what each of them spares, and skip what cannot be released."""
    guards_asked = search.request.guards
    _count_spared(Guard.LIBRARY, search.spared_at_first(), spared)
    for guard, spare in _STAGES:
        if view.asked and guard in guards_asked and (thorough or spare not in _THOROUGH):
            view = _apply(guard, spare, search, view, spared)
    if view.asked and thorough and Guard.RUNNING not in guards_asked:
        _skip_held(search, view)
    if view.asked:
        _skip_borrowed(search, view)
    view.skip(search.may_be_gradients(view.asked), "another thread is inside a backward: may be a gradient")
    if view.asked and view.skipped:
        view = _skip_parts(search, view)
    return view


def _apply(guard: Guard, spare: Any, search: _Search, view: _View, spared: dict[str, int]) -> _View:
    """Let one guard spare what it will, and count the bytes that it spared.

    What is spared may call for more: it is asked again until it adds nothing.
    """
    while view.asked and spare(search, view):
        if not view.skipped and search.has_as_roots(view.asked):
            _count_spared(guard, view.asked, spared)
            return _View(view.snapshot)  # as a look would find, which takes a walk over the heap
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
        sizes = {one.extent or id(one): one.item.nbytes for one in those}
        key = name or str(guard.name).lower()
        spared[key] = spared.get(key, 0) + sum(sizes.values())


def _spare_graphs(search: _Search, view: _View) -> bool:
    search.graphs = True
    return search.add_hidden(view.snapshot.kept)


def _spare_callbacks(search: _Search, view: _View) -> bool:
    """Of no use if no graph is in use: then the callbacks are those of a graph that may go as well."""
    in_use = keep.any_graph(view.snapshot.kept, view.snapshot.running)
    return in_use and search.add(guards.callbacks())


def _spare_library_state(search: _Search, view: _View) -> bool:
    unkept, found = _core.IdSet(view.snapshot.candidates), guards.library_state(search.scan_for)
    state = (obj for obj in found if obj in unkept or not is_a(obj, torch.Tensor, torch.nn.Module))
    return search.add(chain(state, compiled.captured()))


def _spare_what_moved(search: _Search, view: _View) -> bool:
    """What was in no library yet when libraries were looked into, and is in no thread's hands any more."""
    if search.is_alone:
        return False
    read = _spare_replayed(search, view)
    return _spare_library_state(search, view) or read


def _spare_aliases(search: _Search, view: _View) -> bool:
    memory = MemoryMap(keep.extents([*view.snapshot.kept, *view.snapshot.running]))
    return search.add(one.obj for one in view.asked if one.extent and memory.overlaps(one.extent))


def _spare_replayed(search: _Search, view: _View) -> bool:
    """What a graph reads it does not say, so whatever is where it can read counts as read."""
    replayed = addresses.replayed()
    read = (one.obj for one in view.asked if addresses.is_read(one.obj, one.item.device, replayed))
    return bool(replayed) and search.add(read)


def _spare_running(search: _Search, _: _View) -> bool:
    if search.running_code is not None:
        return False
    search.running_code = running_code()
    search.add(suspended_modes())
    return True


# Each of these takes walks over the heap of its own.
_THOROUGH = (_spare_callbacks, _spare_running, _spare_what_moved)

# Aliases once more at the end: what libraries and running code hold stands on memory too.
_STAGES = (
    (Guard.AUTOGRAD, _spare_graphs),
    (Guard.ALIAS, _spare_aliases),
    (Guard.LIBRARY, _spare_library_state),
    (Guard.ALIAS, _spare_replayed),
    (Guard.RUNNING, _spare_running),
    (Guard.LIBRARY, _spare_what_moved),
    (Guard.AUTOGRAD, _spare_callbacks),
    (Guard.ALIAS, _spare_aliases),
)


def _skip_held(search: _Search, view: _View) -> None:
    """Skip what must not be released although no guard spares it: memory would be read after its end.

    A tensor that a NumPy array stands on: `Tensor.numpy` makes a tensor the base of the array and the
    storage unresizable, and nothing else ties the two together (torch/csrc/utils/tensor_numpy.cpp). And,
    if other threads run, what any of them may be inside an operation on; or, if this torch is such,
    what may be owned by C++ alone. All are known by a reference that no visible object accounts for.
    """
    if (alone := search.is_alone and OWNED_TENSORS_HOLD_THEMSELVES) and not any(map(may_be_lent, view.asked)):
        return
    search.running_code = running_code(look_through=False)
    after = search.look()
    held, left = _core.IdSet(after.snapshot.held), _core.IdSet(after.asked)
    stays = [(one.obj in held and may_be_lent(one)) if alone else one not in left for one in view.asked]
    view.skip(stays, "held from outside the garbage collector's sight (by running code, NumPy, or C++)")


def _skip_borrowed(search: _Search, view: _View) -> None:
    """Skip what an array of another library reads by its address, whoever holds that array."""
    if search.add(addresses.lent()):
        left = _core.IdSet(search.look().asked)
        stays = [one not in left for one in view.asked]
        view.skip(stays, "an array of another library reads its memory")


def _skip_parts(search: _Search, view: _View) -> _View:
    """Skip what is reached by something that is skipped: that must stay whole."""
    search.add(one.obj for one in view.skipped)
    after = search.look()
    left = _core.IdSet(after.asked)
    view.skip([one not in left for one in view.asked], "a part of something that cannot be released")
    return _View(after.snapshot, view.asked, view.skipped)
