"""What each purge does: let go of finished outputs, unload models, sweep what is left."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from fastpurge import _core, memory
from fastpurge.comfy import caches, holders, models
from fastpurge.comfy.look import look
from fastpurge.comfy.prompt import Prompt
from fastpurge.library_folders import libraries
from fastpurge.report import SweepReport
from fastpurge.sweeping import sweep

# Smaller ones are not what fills a machine, and custom nodes keep constants at module level.
RAM_MIN_BYTES = 16 << 20
ALL_MIN_BYTES = 1 << 20


@dataclass(slots=True)
class Outcome:
    """What a purge did.

    Attributes:
        report: memory before and after, the time it took in all, and what was swept.
        let_go: titles of nodes whose finished outputs, or instances, were dropped from the cache.
        unloaded: models that ComfyUI has unloaded, with their sizes.
        forgotten: where custom nodes held what was released.
        missed: where custom nodes hold what is large and what they would not load again. It was left.
        broken: titles of nodes still to run whose inputs were purged.

    """

    report: SweepReport
    let_go: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


def purge_vram(prompt: Prompt, wired: tuple[object, ...]) -> Outcome:
    """Have ComfyUI unload its models, all but those wired in, and empty every device cache."""
    started, before = perf_counter(), memory.read()
    unloaded = models.unload(_core.closure(wired, libraries=libraries()))
    if before.devices:
        gc.collect()
    memory.give_back()
    return Outcome(_nothing_swept(prompt, started, before), unloaded=unloaded)


def purge_ram(
    prompt: Prompt, wired: tuple[object, ...], *, protect_pending: bool, min_bytes: int = RAM_MIN_BYTES
) -> Outcome:
    """Let go of finished outputs that nobody needs, then release what is alive, on the CPU, unprotected."""
    kind = _Kind(min_bytes, devices="cpu", is_severe=False)
    return _purge(prompt, wired, kind, protect_pending=protect_pending)


def purge_all(
    prompt: Prompt, wired: tuple[object, ...], *, protect_pending: bool, min_bytes: int = ALL_MIN_BYTES
) -> Outcome:
    """Unload what is unprotected, and then as `purge_ram`, on every device, down to small things, wiped."""
    kind = _Kind(min_bytes, devices=None, is_severe=True)
    return _purge(prompt, wired, kind, protect_pending=protect_pending)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How far a purge goes."""

    min_bytes: int
    devices: str | None
    is_severe: bool


_References = list[weakref.ref[Any]]


@dataclass(frozen=True, slots=True)
class _Left:
    """What is left when finished outputs are let go of.

    Attributes:
        let_go: titles of nodes whose entries were evicted.
        large: what is large and not needed.
        cached: what is needed, or feeds the node that runs.

    """

    let_go: list[str]
    large: _References
    cached: _core.IdSet


def _purge(prompt: Prompt, wired: tuple[object, ...], kind: _Kind, *, protect_pending: bool) -> Outcome:
    started, before = perf_counter(), memory.read()
    needed = [*wired, *(prompt.reads() if protect_pending else ())]
    cached = (*needed, *prompt.wired())
    unloaded = models.unload(_core.closure(cached, libraries=libraries())) if kind.is_severe else []
    left = _let_go(prompt, cached, kind)
    outcome = Outcome(_nothing_swept(prompt, started, before), left.let_go, unloaded)
    if unloaded or _any_alive(left.large):
        _sweep(prompt, needed, left, kind, outcome)
        outcome.report = replace(outcome.report, before=before, seconds=perf_counter() - started)
    return outcome


def _sweep(prompt: Prompt, needed: list[object], left: _Left, kind: _Kind, outcome: Outcome) -> None:
    # No cache entry that is left may lead to a tombstone, no instance of a node, no model on the books.
    stays = [*needed, prompt.graph, *prompt.books, *models.on_the_books(), *prompt.packs.strays()]
    holdings = holders.find((*_alive(left.large),), prompt.packs)
    if not kind.is_severe:
        stays += holdings.missed
        outcome.missed = holdings.missed_at
    if outcome.unloaded or _any_outside(left.large, stays):
        outcome.report = sweep(
            keep=stays,
            devices=kind.devices,
            wipe=kind.is_severe,
            min_bytes=kind.min_bytes,
            collect=bool(outcome.unloaded) or (False if outcome.let_go else "auto"),
            label=prompt.title,
        )
    if outcome.report.released:
        outcome.forgotten, packs = holdings.empty()
        # What nodes of those packs have given out may be a name for what was there.
        outdated = [entry for entry in prompt.made_by(packs) if entry.value not in left.cached]
        outcome.let_go = [*dict.fromkeys([*outcome.let_go, *_evict(prompt, outdated)])]
        outcome.broken = [prompt.title_of(node) for node in prompt.broken()]


def _let_go(prompt: Prompt, needed: tuple[object, ...], kind: _Kind) -> _Left:
    """Evict what holds memory that nothing needs: it is computed again, and never met as a tombstone."""
    seen = look(needed, device_type=kind.devices)
    heavy = caches.holding(caches.entries(prompt.caches), seen.unkept, min_bytes=kind.min_bytes)
    evicted = [weakref.ref(one.tensor) for _, tensors in heavy for one in tensors]
    titles = _evict(prompt, [entry for entry, _ in heavy])
    large, kept = seen.large(kind.min_bytes), seen.needed
    del seen, heavy
    if _any_alive(evicted):
        gc.collect()  # what is in a cycle would stay until somebody else does
    memory.give_back()
    return _Left(titles, large, kept)


def _alive(references: _References) -> Iterator[Any]:
    return (one for one in (ref() for ref in references) if one is not None)


def _any_alive(references: _References) -> bool:
    return any(one() is not None for one in references)


def _any_outside(references: _References, kept: list[object]) -> bool:
    """Whether anything is left that is not kept."""
    inside = _core.closure((*kept,), libraries=libraries())
    return any(one not in inside for one in _alive(references))


def _nothing_swept(prompt: Prompt, started: float, before: memory.MemoryReading) -> SweepReport:
    return SweepReport(
        label=prompt.title,
        released=(),
        skipped=(),
        spared={},
        objects_scanned=0,
        seconds=perf_counter() - started,
        before=before,
        after=memory.read(),
    )


def _evict(prompt: Prompt, entries: list[caches.Entry]) -> list[str]:
    """Take entries out of their caches, and say of which nodes they are."""
    titles = [prompt.title_of(entry.node_id) for entry in entries]
    for entry in entries:
        entry.evict()
    return [*dict.fromkeys(titles)]
