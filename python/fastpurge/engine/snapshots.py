"""Takes snapshots of the heap, each with the roots that those before it brought to light.

A rule for this file and for `survey.py`: while a snapshot is taken that looks for what running code holds, no
local variable there may hold a candidate, or a plain container of candidates. This is running code too.
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
from fastpurge.torch_facts.tensors import OWNED_TENSORS_HOLD_THEMSELVES, has_cpp_owner, use_count


@dataclass(slots=True)
class View:
    """One snapshot, and what of it the request asks for."""

    snapshot: _core.Snapshot
    asked: list[Candidate] = field(default_factory=list)
    skipped: list[Candidate] = field(default_factory=list)

    def skip(self, which: list[bool], reason: str) -> None:
        """Skip some of what is asked for, for a reason."""
        pairs = list(zip(self.asked, which, strict=True))
        self.skipped += [Candidate(one.obj, replace(one.item, reason=reason)) for one, yes in pairs if yes]
        self.asked = [one for one, yes in pairs if not yes]


_IDLE_ROUNDS, _MOST_ROUNDS = 2, 1000
_set_class = cast(Any, object.__dict__["__class__"]).__set__


class Search:
    """Takes snapshots, each with the roots that those before it brought to light."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.scan_for = (torch.Tensor, torch.nn.Module) if request.models else (torch.Tensor,)
        self.graphs = self.is_sorting = self._gradients_unread = self._found_contents = False
        self.running_code: _core.RunningCode | None = None
        self._named = named(request.keep)
        self._roots: list[Any] = []
        self._known, self._owned = _core.IdSet(), _core.IdSet()
        self._considered: dict[int, Candidate | None] = {}
        self.is_alone = len(sys._current_frames()) == 1  # as it stays: this thread starts none
        # Most often libraries keep what they kept before, and then one look is enough.
        library = Guard.LIBRARY in request.guards
        state = library_globals.library_state(self.scan_for, where_known=True) if library else []
        # What came into being since is nobody's garbage yet; the first snapshot keeps its own alive.
        self._first = self._snapshot(guarded=state)
        self._there = self._unused = _core.IdSet(chain(self._first.candidates, self._first.spared))
        self.add(state)

    def first_look(self) -> View:
        """What there is, before anything was asked what it hides."""
        return self._view_of(self._first)

    def spared_at_first(self) -> list[Candidate]:
        """What was asked for, and is spared because libraries are known to keep it."""
        found = (self._consider(obj) for obj in self._first.spared)
        return [one for one in found if one is not None and one.item.reason is None]

    def look(self) -> View:
        """What there is with the roots that are known now."""
        return self.settle(self._view())

    def settle(self, view: View) -> View:
        """Take snapshots until one brings no hidden root to light that was not known.

        While other threads compute there is always a new one: what they have just computed. So then it also
        ends when twice in a row what came to light was nothing else: it led to no candidate, and was all of a
        graph. A chain of hidden things that leads to a candidate has tensors for its links, which were
        candidates, or arrays, records and scripts, whose contents are no graph.
        """
        unkept = _core.IdSet(one for one in view.snapshot.candidates if one in self._there)
        idle = rounds = 0
        while view.asked and self.add_hidden(view.snapshot.kept):
            view = self._view()
            before = len(unkept)
            unkept = _core.IdSet(one for one in view.snapshot.candidates if one in unkept)
            idle = 0 if self._found_contents or len(unkept) < before else idle + 1
            if idle == _IDLE_ROUNDS and not self.is_alone:
                break
            if (rounds := rounds + 1) > _MOST_ROUNDS:
                raise RuntimeError("what is kept leads on and on, out of the closure's sight")
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
        gradients = hidden_references.gradients(kept)
        self._gradients_unread |= gradients is None
        contents = [one for one in hidden_references.contents(kept) if one not in self._known]
        self._found_contents = any(map(hidden_references.may_reference_more, contents))
        return self.add(
            chain(hidden_references.graphs(kept) if self.graphs else (), contents, gradients or ())
        )

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

    def _view(self) -> View:
        snapshot = self._snapshot()
        while snapshot.held and self._explain(snapshot):
            snapshot = self._snapshot()
        return self._view_of(snapshot)

    def _view_of(self, snapshot: _core.Snapshot) -> View:
        view = View(snapshot)
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
            report=hidden_references.reported_types(),
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
        self._owned.update(x for x in hidden_references.owned_in_cpp([*unkept, *snapshot.kept]) if x in held)
        return len(self._owned) > known

    def _hold_themselves(self) -> _core.IdSet:
        return self._owned if OWNED_TENSORS_HOLD_THEMSELVES else _core.IdSet()

    def _consider(self, obj: Any) -> Candidate | None:
        # The first snapshot holds every candidate, so its identity stays its own.
        if id(obj) not in self._considered:
            self._considered[id(obj)] = consider(obj, self.request)
        return self._considered[id(obj)]
