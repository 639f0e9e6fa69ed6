"""What each purge does: let go of finished outputs, unload models, sweep what is left."""

import gc
from dataclasses import dataclass, field, replace
from time import perf_counter

from fastpurge import _core, keep, memory
from fastpurge.comfy import caches, holders, models
from fastpurge.comfy.look import look
from fastpurge.comfy.prompt import Prompt
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
        broken: titles of nodes still to run whose inputs were purged.

    """

    report: SweepReport
    let_go: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def purge_vram(prompt: Prompt, wired: tuple[object, ...]) -> Outcome:
    """Have ComfyUI unload its models, all but those wired in, and empty every device cache."""
    started, before = perf_counter(), memory.read()
    unloaded = models.unload(_core.closure(wired, libraries=keep.libraries()))
    if before.devices:
        gc.collect()
    memory.give_back()
    return Outcome(_nothing_swept(prompt, started, before), unloaded=unloaded)


def purge_ram(prompt: Prompt, wired: tuple[object, ...], *, protect_pending: bool) -> Outcome:
    """Let go of finished outputs that nobody needs, then release what is alive, on the CPU, unprotected."""
    return _purge(
        prompt, wired, protect_pending=protect_pending, min_bytes=RAM_MIN_BYTES, devices="cpu", unload=False
    )


def purge_all(prompt: Prompt, wired: tuple[object, ...], *, protect_pending: bool) -> Outcome:
    """Unload what is unprotected, and then as `purge_ram`, on every device, down to small things, wiped."""
    return _purge(
        prompt, wired, protect_pending=protect_pending, min_bytes=ALL_MIN_BYTES, devices=None, unload=True
    )


def _purge(
    prompt: Prompt,
    wired: tuple[object, ...],
    *,
    protect_pending: bool,
    min_bytes: int,
    devices: str | None,
    unload: bool,
) -> Outcome:
    started, before = perf_counter(), memory.read()
    needed = [*wired, *(prompt.reads() if protect_pending else ())]
    cached = (*needed, *prompt.wired())
    unloaded = models.unload(_core.closure(cached, libraries=keep.libraries())) if unload else []
    seen = look(cached, device_type=devices)
    let_go = _evict(prompt, caches.holding(caches.entries(prompt.caches), seen.unkept, min_bytes=min_bytes))
    large, kept, objects_scanned = seen.large(min_bytes), seen.needed, seen.objects_scanned
    del seen  # what was let go of goes with it, if nothing else holds it
    if not unloaded and not any(one() is not None for one in large):
        memory.give_back()
        return Outcome(_nothing_swept(prompt, started, before, objects_scanned), let_go=let_go)
    # No cache entry that is left may lead to a tombstone, no instance of a node, no model on the books.
    stays = [prompt.graph, *prompt.books, *models.on_the_books()]
    report = sweep(
        keep=[*needed, *stays],
        devices=devices,
        wipe=unload,
        min_bytes=min_bytes,
        collect=True if let_go or unloaded else "auto",
        label=prompt.title,
    )
    outcome = Outcome(report, let_go=let_go, unloaded=unloaded)
    if report.released:
        _heal(prompt, kept, outcome)
    outcome.report = replace(report, before=before, seconds=perf_counter() - started)
    return outcome


def _heal(prompt: Prompt, kept: _core.IdSet, outcome: Outcome) -> None:
    """See to it that what was released is loaded again when it is needed, and say what fails till then."""
    forgotten = holders.forget_tombstones()
    outcome.forgotten = forgotten.places
    # What nodes of those packs have given out may be a name for what was there.
    outdated = [entry for entry in prompt.made_by(forgotten.packs) if entry.value not in kept]
    outcome.let_go = [*dict.fromkeys([*outcome.let_go, *_evict(prompt, outdated)])]
    outcome.broken = [prompt.title_of(node) for node in prompt.broken()]


def _nothing_swept(
    prompt: Prompt, started: float, before: memory.MemoryReading, objects_scanned: int = 0
) -> SweepReport:
    return SweepReport(
        label=prompt.title,
        released=(),
        skipped=(),
        spared={},
        objects_scanned=objects_scanned,
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
