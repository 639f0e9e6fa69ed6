"""What each purge does: let go of finished outputs, unload models, sweep what is left."""

import gc
from dataclasses import dataclass, field, replace
from time import perf_counter

from fastpurge import _core, keep, memory
from fastpurge.comfy import caches, holders, models
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
    report = SweepReport(
        label=prompt.title,
        released=(),
        skipped=(),
        spared={},
        objects_scanned=0,
        seconds=perf_counter() - started,
        before=before,
        after=memory.read(),
    )
    return Outcome(report, unloaded=unloaded)


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
    kept = _core.closure((*needed, *prompt.wired()), libraries=keep.libraries())
    unloaded = models.unload(kept) if unload else []
    let_go = _let_go(prompt, kept, min_bytes, devices)
    # No cache entry that is left may lead to a tombstone, no instance of a node, no model on the books.
    stays = [prompt.graph, *prompt.caches, *models.on_the_books()]
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
        outcome.forgotten = holders.forget_tombstones()
        outcome.broken = [prompt.title_of(node) for node in prompt.broken()]
    outcome.report = replace(report, before=before, seconds=perf_counter() - started)
    return outcome


def _let_go(prompt: Prompt, kept: _core.IdSet, min_bytes: int, devices: str | None) -> list[str]:
    """Evict what holds memory that nothing needs: it is computed again, and never met as a tombstone."""
    entries = caches.entries(prompt.caches)
    heavy = caches.holding(entries, kept=kept, device_type=devices, min_bytes=min_bytes)
    titles = [prompt.title_of(entry.node_id) for entry in heavy]
    for entry in heavy:
        entry.evict()
    return [*dict.fromkeys(titles)]
