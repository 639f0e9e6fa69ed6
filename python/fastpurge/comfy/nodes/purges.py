"""The purges: evict finished outputs, unload models, sweep what is left."""

import gc
import weakref
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from fastpurge import _core
from fastpurge.allocators import memory
from fastpurge.comfy.comfyui import caches, custom_node_roots, loaded_models
from fastpurge.comfy.comfyui.custom_node_roots import KeptMemory
from fastpurge.comfy.comfyui.prompt import Prompt
from fastpurge.comfy.comfyui.unkept_tensors import take_snapshot
from fastpurge.engine.sweep import sweep
from fastpurge.python_facts.library_folders import libraries
from fastpurge.reporting.report import SweepReport

# Smaller tensors do not fill a machine.
RAM_MIN_BYTES = 16 << 20
ALL_MIN_BYTES = 1 << 20


@dataclass(slots=True)
class Outcome:
    """What a purge did.

    Attributes:
        report: memory before and after, total duration, and the released objects.
        evicted: titles of nodes whose outputs or instances were evicted from the cache.
        unloaded: models that ComfyUI unloaded, with their sizes.
        kept_by_packs: what was kept because custom nodes reach it.
        pinned: what was kept because ComfyUI has pinned memory for it.
        failing_nodes: titles of nodes still to run whose inputs were released.

    """

    report: SweepReport
    evicted: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    kept_by_packs: list[KeptMemory] = field(default_factory=list)
    pinned: list[KeptMemory] = field(default_factory=list)
    failing_nodes: list[str] = field(default_factory=list)


def purge_vram(prompt: Prompt, wired: tuple[object, ...]) -> Outcome:
    """Have ComfyUI unload all models that are not wired in, then trim the caches of all devices."""
    started, before = perf_counter(), memory.read()
    unloaded = loaded_models.unload(_core.closure(wired, libraries=libraries()))
    if before.devices:
        gc.collect()
    memory.give_back()
    return Outcome(_empty_report(prompt, started, before), unloaded=unloaded)


def purge_ram(
    prompt: Prompt, wired: tuple[object, ...], *, protect_pending: bool, min_bytes: int = RAM_MIN_BYTES
) -> Outcome:
    """Evict outputs that no pending node needs, then release large unprotected objects on the CPU."""
    scope = _Scope(min_bytes, devices="cpu", is_severe=False)
    return _purge(prompt, wired, scope, protect_pending=protect_pending)


def purge_all(
    prompt: Prompt, wired: tuple[object, ...], *, protect_pending: bool, min_bytes: int = ALL_MIN_BYTES
) -> Outcome:
    """Unload unprotected models; then like `purge_ram`, but on every device and wiped."""
    scope = _Scope(min_bytes, devices=None, is_severe=True)
    return _purge(prompt, wired, scope, protect_pending=protect_pending)


@dataclass(frozen=True, slots=True)
class _Scope:
    """Which objects a purge releases, and whether it unloads models and wipes."""

    min_bytes: int
    devices: str | None
    is_severe: bool


_References = list[weakref.ref[Any]]


@dataclass(frozen=True, slots=True)
class _AfterEviction:
    """The state after the eviction of finished outputs.

    Attributes:
        evicted: titles of nodes whose entries were evicted.
        large: large objects that neither the prompt nor custom nodes reach.
        kept_by_packs: the roots of custom nodes.
        kept_sizes: owners and sizes of what only custom nodes reach.

    """

    evicted: list[str]
    large: _References
    kept_by_packs: list[object]
    kept_sizes: list[KeptMemory]


def _purge(prompt: Prompt, wired: tuple[object, ...], scope: _Scope, *, protect_pending: bool) -> Outcome:
    started, before = perf_counter(), memory.read()
    needed = [*wired, *(prompt.pending_inputs() if protect_pending else ())]
    cached = (*needed, *prompt.wired_entries())
    unloaded = loaded_models.unload(_core.closure(cached, libraries=libraries())) if scope.is_severe else []
    rest = _evict_finished(prompt, cached, scope)
    outcome = Outcome(_empty_report(prompt, started, before), rest.evicted, unloaded, rest.kept_sizes)
    if unloaded or _any_alive(rest.large):
        _sweep(prompt, [*needed, *rest.kept_by_packs], rest.large, scope, outcome)
        outcome.report = replace(outcome.report, before=before, seconds=perf_counter() - started)
    return outcome


def _evict_finished(prompt: Prompt, needed: tuple[object, ...], scope: _Scope) -> _AfterEviction:
    """Evict cache entries with unneeded memory, so that their nodes run again and never read a tombstone."""
    found = custom_node_roots.find_roots(prompt.modules_and_coroutines, prompt.caches_and_executions)
    seen = take_snapshot(
        needed,
        [root.closure_start for root in found],
        # The traceback of an exception that custom nodes keep reaches the executor and all finished outputs.
        boundary=[*prompt.caches_and_executions, prompt.execution],
        device_type=scope.devices,
        min_bytes=scope.min_bytes,
    )
    kept_sizes = custom_node_roots.kept_sizes(seen.kept, found, min_bytes=scope.min_bytes)
    large_entries = caches.entries_reaching(
        caches.entries(prompt.caches), seen.unkept, min_bytes=scope.min_bytes
    )
    evicted = [weakref.ref(one.tensor) for _, tensors in large_entries for one in tensors]
    titles = _evict(prompt, [entry for entry, _ in large_entries])
    # The namespaces themselves, not their values: another thread may add to one before the sweep.
    large, kept_by_packs = seen.large(scope.min_bytes), [*(root.obj for root in found), *seen.hidden]
    del seen, large_entries
    if _any_alive(evicted):
        gc.collect()  # reference cycles would stay until the next automatic collection
    memory.give_back()
    return _AfterEviction(titles, large, kept_by_packs, kept_sizes)


def _sweep(prompt: Prompt, needed: list[object], large: _References, scope: _Scope, outcome: Outcome) -> None:
    # No remaining cache entry, node instance or loaded model may reach a tombstone.
    keep = [*needed, prompt.graph, *prompt.caches_and_executions, *prompt.executor_state]
    keep += loaded_models.models_and_patchers()
    pinned = loaded_models.find_pinned_patchers(_alive_outside(large, keep))
    outcome.pinned = [KeptMemory(f"{one.name} in a model patcher of ComfyUI", one.nbytes) for one in pinned]
    keep += [one.patcher for one in pinned]
    if outcome.unloaded or _alive_outside(large, keep):
        outcome.report = sweep(
            keep=keep,
            devices=scope.devices,
            wipe=scope.is_severe,
            min_bytes=scope.min_bytes,
            collect=bool(outcome.unloaded) or (False if outcome.evicted else "auto"),
            label=prompt.title,
        )
    if outcome.report.released:
        outcome.failing_nodes = [prompt.title_of(node) for node in prompt.find_failing_nodes()]


def _any_alive(references: _References) -> bool:
    return any(one() is not None for one in references)


def _alive_outside(references: _References, kept: list[object]) -> list[weakref.ref[Any]]:
    """The references that are alive and not in the closure of ``kept``."""
    inside = _core.closure((*kept,), libraries=libraries())
    return [ref for ref in references if (one := ref()) is not None and one not in inside]


def _empty_report(prompt: Prompt, started: float, before: memory.MemoryReading) -> SweepReport:
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
    """Evict entries, and return the titles of their nodes."""
    titles = [prompt.title_of(entry.node_id) for entry in entries]
    for entry in entries:
        entry.evict()
    return [*dict.fromkeys(titles)]
