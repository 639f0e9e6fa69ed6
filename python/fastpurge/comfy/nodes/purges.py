"""What each purge does: let go of finished outputs, unload models, sweep what is left."""

import gc
import weakref
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from fastpurge import _core
from fastpurge.allocators import memory
from fastpurge.comfy.comfyui import caches, loaded_models, pack_storage
from fastpurge.comfy.comfyui.pack_storage import Left
from fastpurge.comfy.comfyui.prompt import Prompt
from fastpurge.comfy.comfyui.unkept_tensors import look
from fastpurge.engine.sweep import sweep
from fastpurge.python_facts.library_folders import libraries
from fastpurge.reporting.report import SweepReport

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
        left: what custom nodes keep, where and how large. It was left.
        pinned: the same of what ComfyUI itself has not done with.
        broken: titles of nodes still to run whose inputs were purged.

    """

    report: SweepReport
    let_go: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    pinned: list[Left] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def purge_vram(prompt: Prompt, wired: tuple[object, ...]) -> Outcome:
    """Have ComfyUI unload its models, all but those wired in, and empty every device cache."""
    started, before = perf_counter(), memory.read()
    unloaded = loaded_models.unload(_core.closure(wired, libraries=libraries()))
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
class _Rest:
    """What there is when finished outputs have been let go of.

    Attributes:
        let_go: titles of nodes whose entries were evicted.
        large: what is large, and neither needed nor kept by custom nodes.
        theirs: what custom nodes keep.
        left: where that is, and how large.

    """

    let_go: list[str]
    large: _References
    theirs: list[object]
    left: list[Left]


def _purge(prompt: Prompt, wired: tuple[object, ...], kind: _Kind, *, protect_pending: bool) -> Outcome:
    started, before = perf_counter(), memory.read()
    needed = [*wired, *(prompt.reads() if protect_pending else ())]
    cached = (*needed, *prompt.wired())
    unloaded = loaded_models.unload(_core.closure(cached, libraries=libraries())) if kind.is_severe else []
    rest = _let_go(prompt, cached, kind)
    outcome = Outcome(_nothing_swept(prompt, started, before), rest.let_go, unloaded, rest.left)
    if unloaded or _any_alive(rest.large):
        _sweep(prompt, [*needed, *rest.theirs], rest.large, kind, outcome)
        outcome.report = replace(outcome.report, before=before, seconds=perf_counter() - started)
    return outcome


def _let_go(prompt: Prompt, needed: tuple[object, ...], kind: _Kind) -> _Rest:
    """Evict what holds memory that nothing needs: it is computed again, and never met as a tombstone."""
    found = pack_storage.find(prompt.code, prompt.books)
    seen = look(
        needed,
        [place.root for place in found],
        # An exception that custom nodes keep leads to the executor, and so to every finished output.
        boundary=[*prompt.books, prompt.execution],
        device_type=kind.devices,
        min_bytes=kind.min_bytes,
    )
    left = pack_storage.sizes(seen.kept, found, min_bytes=kind.min_bytes)
    heavy = caches.holding(caches.entries(prompt.caches), seen.unkept, min_bytes=kind.min_bytes)
    evicted = [weakref.ref(one.tensor) for _, tensors in heavy for one in tensors]
    titles = _evict(prompt, [entry for entry, _ in heavy])
    # The namespaces themselves: another thread may put something new into one until the sweep is done.
    large, theirs = seen.large(kind.min_bytes), [*(place.obj for place in found), *seen.hidden]
    del seen, heavy
    if _any_alive(evicted):
        gc.collect()  # what is in a cycle would stay until somebody else does
    memory.give_back()
    return _Rest(titles, large, theirs, left)


def _sweep(prompt: Prompt, needed: list[object], large: _References, kind: _Kind, outcome: Outcome) -> None:
    # No cache entry that is left may lead to a tombstone, no instance of a node, no model on the books.
    stays = [*needed, prompt.graph, *prompt.books, *prompt.in_use, *loaded_models.on_the_books()]
    pinned = loaded_models.pinned(_outside(large, stays))
    outcome.pinned = [Left(f"{one.name} in a model patcher of ComfyUI", one.nbytes) for one in pinned]
    stays += [one.patcher for one in pinned]
    if outcome.unloaded or _outside(large, stays):
        outcome.report = sweep(
            keep=stays,
            devices=kind.devices,
            wipe=kind.is_severe,
            min_bytes=kind.min_bytes,
            collect=bool(outcome.unloaded) or (False if outcome.let_go else "auto"),
            label=prompt.title,
        )
    if outcome.report.released:
        outcome.broken = [prompt.title_of(node) for node in prompt.broken()]


def _any_alive(references: _References) -> bool:
    return any(one() is not None for one in references)


def _outside(references: _References, kept: list[object]) -> list[weakref.ref[Any]]:
    """What of it is left and not kept."""
    inside = _core.closure((*kept,), libraries=libraries())
    return [ref for ref in references if (one := ref()) is not None and one not in inside]


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
