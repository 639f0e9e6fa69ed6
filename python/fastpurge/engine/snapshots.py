"""Takes snapshots of the heap, each with the hidden roots found after the one before.

A rule for this file and for `survey.py`: while a snapshot looks for what running code uses, no local variable
may reference a candidate or a plain container of candidates. This is running code too.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, cast

import torch
from torch._C import DisableTorchFunction

from fastpurge import _core
from fastpurge.engine.candidates import Candidate, consider
from fastpurge.engine.guards import Guard
from fastpurge.engine.keep_argument import named
from fastpurge.engine.request import Request
from fastpurge.python_facts import library_globals
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.running_code import running_code
from fastpurge.torch_facts import hidden_references
from fastpurge.torch_facts.tensors import OWNED_TENSORS_REFERENCE_THEMSELVES, has_cpp_owner, use_count


@dataclass(slots=True)
class View:
    """One snapshot, and its candidates that the request covers."""

    snapshot: _core.Snapshot
    asked: list[Candidate] = field(default_factory=list)
    skipped: list[Candidate] = field(default_factory=list)

    def skip(self, which: list[bool], reason: str) -> None:
        """Move the candidates flagged in ``which`` to the skipped, with a reason."""
        pairs = list(zip(self.asked, which, strict=True))
        self.skipped += [Candidate(one.obj, replace(one.item, reason=reason)) for one, yes in pairs if yes]
        self.asked = [one for one, yes in pairs if not yes]


_IDLE_ROUNDS, _MOST_ROUNDS = 2, 1000
_set_class = cast(Any, object.__dict__["__class__"]).__set__


class Search:
    """Takes snapshots, each with the hidden roots found after the one before."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.scan_for = (torch.Tensor, torch.nn.Module) if request.models else (torch.Tensor,)
        self.graphs = self.is_sorting = self._gradients_unread = self._found_contents = False
        self.has_new_owned_tensors = False
        self.running_code: _core.RunningCode | None = None
        self._named = named(request.keep)
        self._roots: list[Any] = []
        self._known, self._owned = _core.IdSet(), _core.IdSet()
        self._considered: dict[int, Candidate | None] = {}
        self.is_alone = len(sys._current_frames()) == 1  # stays so: this thread starts no other
        # Most often the libraries that kept something before are the ones that do now: then one walk is
        # enough.
        library = Guard.LIBRARY in request.guards
        state = library_globals.library_state(self.scan_for, where_known=True) if library else []
        # Objects made after the first snapshot are never candidates. The snapshot keeps its candidates alive.
        self._first = self._snapshot(guarded=state)
        self._there = self._unused = _core.IdSet(chain(self._first.candidates, self._first.spared))
        self.add(state)

    def first_view(self) -> View:
        """The first snapshot, before any hidden reference was looked for."""
        return self._view_of(self._first)

    def spared_at_first(self) -> list[Candidate]:
        """The requested candidates that are spared, because libraries are known to keep them."""
        found = (self._consider(obj) for obj in self._first.spared)
        return [one for one in found if one is not None and one.item.reason is None]

    def new_view(self) -> View:
        """A new snapshot with all roots known now."""
        return self.settle(self._view())

    def settle(self, view: View) -> View:
        """Take snapshots until one leads to no new hidden root.

        While other threads compute there are always new ones: the graphs of what they have just computed. So
        it also ends when two snapshots in a row led only to new parts of graphs, and to no candidate. A chain
        of hidden references to a candidate consists of tensors, which were candidates themselves, or of
        arrays, records and scripts, which are no parts of graphs.
        """
        unkept = _core.IdSet(one for one in view.snapshot.candidates if one in self._there)
        idle = rounds = 0
        while view.asked and self.add_hidden(view.snapshot.kept, view.snapshot.kept_by_running_code):
            view = self._view()
            before = len(unkept)
            unkept = _core.IdSet(one for one in view.snapshot.candidates if one in unkept)
            idle = 0 if self._found_contents or len(unkept) < before else idle + 1
            if idle == _IDLE_ROUNDS and not self.is_alone:
                break
            if (rounds := rounds + 1) > _MOST_ROUNDS:
                raise RuntimeError("hidden references of kept objects never end")
        return view

    def add(self, roots: Iterable[Any]) -> bool:
        """Make these objects roots of every later snapshot. Returns whether any was new."""
        before = len(self._roots)
        for root in roots:
            if root not in self._known:
                self._known.add(root)
                self._roots.append(root)
        return len(self._roots) > before

    def has_as_roots(self, candidates: list[Candidate]) -> bool:
        """Whether all of these are roots, so that none can be a candidate any more."""
        return all(one.obj in self._known for one in candidates)

    def add_hidden(self, kept: list[Any], in_use: list[Any]) -> bool:
        """Make the hidden referents of kept objects roots, and those of the arrays that running code uses.

        The graphs of the tensors that running code uses stay with their owners in C++. Returns whether any
        root was new.
        """
        gradients = hidden_references.gradients(kept)
        self._gradients_unread |= gradients is None
        found = hidden_references.contents(chain(kept, in_use))
        contents = [one for one in found if one not in self._known]
        self._found_contents = any(map(hidden_references.may_reference_more, contents))
        return self.add(
            chain(hidden_references.graphs(kept) if self.graphs else (), contents, gradients or ())
        )

    def may_be_gradients(self, candidates: list[Candidate]) -> list[bool]:
        """Which of them may be gradients of kept tensors, because gradients could not be read."""
        return [self._gradients_unread and has_cpp_owner(one.obj) for one in candidates]

    def exchange(
        self, candidates: list[Candidate], blanks: list[object]
    ) -> list[tuple[int, BaseException | None]]:
        """Swap candidates with tombstones: see `Survey.exchange`."""
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
                self_referenced=self._hold_themselves(),
                count_owners=use_count,
                spare_external=look_through or not OWNED_TENSORS_REFERENCE_THEMSELVES,
                set_class=_set_class,
                implementation=(torch.Tensor, torch._C._swap_tensor_impl),
            )

    def _view(self) -> View:
        snapshot = self._snapshot()
        while snapshot.externally_referenced and self._explain(snapshot):
            snapshot = self._snapshot()
        return self._view_of(snapshot)

    def _view_of(self, snapshot: _core.Snapshot) -> View:
        view = View(snapshot)
        for obj in snapshot.candidates:
            if obj not in self._there:
                self.has_new_owned_tensors |= has_cpp_owner(obj)
                continue
            if (candidate := self._consider(obj)) is not None:
                (view.skipped if candidate.item.reason else view.asked).append(candidate)
        if self.running_code is not None:
            # What a thread used at one snapshot may be anywhere by the next.
            view.asked = [one for one in view.asked if one.obj in self._unused]
            self._unused = _core.IdSet(one.obj for one in view.asked)
        return view

    def _snapshot(self, guarded: list[Any] | None = None) -> _core.Snapshot:
        snapshot = _core.snapshot(
            self._named,
            self._roots,
            guarded=guarded or [],
            scan_for=self.scan_for,
            report=hidden_references.reported_types(),
            libraries=libraries(),
            running_code=self.running_code,
            self_referenced=self._hold_themselves(),
        )
        self.is_sorting |= snapshot.list_being_sorted
        return snapshot

    def _explain(self, snapshot: _core.Snapshot) -> bool:
        """Find the objects whose external reference is their own. Returns whether there are new ones.

        A tensor with an owner in C++ has a reference to its own Python object
        (https://github.com/pytorch/pytorch/pull/167564). The use count alone is not enough: a thread that is
        becoming an owner has increased it, and waits for the GIL to take that reference. With an owner that
        stays there is no such moment. So the owners are looked for among tensors that no running code uses
        and that this survey keeps alive.

        Before torch 2.10 the owner in C++ owns the Python object of a tensor. To read the tensor from the
        owner takes that reference over (`THPVariable_Wrap` in torch/csrc/autograd/python_variable.cpp). The
        first snapshot references the object too, so then no tensor references itself: any other reference is
        a use.
        """
        held = _core.IdSet(snapshot.externally_referenced)
        unkept = (x for x in snapshot.candidates if x in self._there)
        known = len(self._owned)
        self._owned.update(x for x in hidden_references.owned_in_cpp([*unkept, *snapshot.kept]) if x in held)
        return len(self._owned) > known

    def _hold_themselves(self) -> _core.IdSet:
        return self._owned if OWNED_TENSORS_REFERENCE_THEMSELVES else _core.IdSet()

    def _consider(self, obj: Any) -> Candidate | None:
        # The first snapshot keeps every candidate alive, so that no id is reused.
        if id(obj) not in self._considered:
            self._considered[id(obj)] = consider(obj, self.request)
        return self._considered[id(obj)]
