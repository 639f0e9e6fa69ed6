"""The outcome of a purge as lines of text for the canvas and the log, and as JSON for the front end."""

import re
from typing import Any

from fastpurge.allocators.memory import MemoryReading
from fastpurge.comfy.comfyui.custom_node_roots import KeptMemory
from fastpurge.comfy.nodes.purges import Outcome
from fastpurge.reporting.items import Item
from fastpurge.reporting.text import human

_LARGEST = 10

_WHY_SPARED = {
    "autograd": "an autograd graph needs them for its backward pass",
    "library": "a library owns them",
    "alias": "they share memory with a kept tensor",
    "running": "running code uses them",
}

_FOLDER = re.compile(r"^[^\['\"(]*[/\\]")

_Row = dict[str, Any]


def to_lines(outcome: Outcome) -> list[str]:
    """The outcome as lines of text, measured figures first."""
    report = outcome.report
    freed = ", ".join(f"{human(nbytes)} {device}" for device, nbytes in report.freed_by_device.items())
    lines = [
        f"freed {freed} in {report.seconds * 1e3:.0f} ms",
        f"resident {human(report.before.rss)} -> {human(report.after.rss)}",
    ]
    for title, names in (("unloaded", outcome.unloaded), ("dropped from the cache", outcome.evicted)):
        if names:
            lines.append(f"{title} {_join_first(names)}")
    if tensors := [item for item in report.released if item.kind == "tensor"]:
        lines.append(f"released {len(tensors):,} tensors, {human(sum(one.nbytes for one in tensors))}")
    if modules := [item.type_name for item in report.released if item.kind == "module"]:
        lines.append(f"stripped {len(modules):,} modules, of {_join_first([*dict.fromkeys(modules)])}")
    lines += [f"spared {human(nbytes)}: {guard}" for guard, nbytes in report.spared.items()]
    lines += [f"not released: {item.describe()}: {item.reason}" for item in report.skipped[:_LARGEST]]
    for title, kept in (
        ("kept by custom nodes", outcome.kept_by_packs),
        ("kept for memory pinned by ComfyUI", outcome.pinned),
    ):
        if kept:
            lines.append(f"{title}: {_join_first([f'{one.where} ({human(one.nbytes)})' for one in kept])}")
    if outcome.failing_nodes:
        lines.append(f"not protected, will fail if run: {_join_first(outcome.failing_nodes)}")
    return lines


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON values for ComfyUI's history, with only the largest items."""
    report = outcome.report
    largest = sorted(report.released, key=lambda item: -item.nbytes)[:_LARGEST]
    return {
        "label": report.label,
        "seconds": report.seconds,
        "freed_by_device": report.freed_by_device,
        "before": _memory(report.before),
        "after": _memory(report.after),
        "unloaded": outcome.unloaded,
        "let_go": outcome.evicted,
        "broken": outcome.failing_nodes,
        "left": [
            {"where": one.where, "nbytes": one.nbytes} for one in [*outcome.kept_by_packs, *outcome.pinned]
        ],
        "spared": report.spared,
        "released": {"count": len(report.released), "nbytes": sum(item.nbytes for item in report.released)},
        "largest": [
            {"what": item.describe(), "nbytes": item.nbytes, "held_by": item.owner} for item in largest
        ],
        "skipped": [{"what": item.describe(), "why": item.reason} for item in report.skipped[:_LARGEST]],
        "went": _freed_rows(outcome),
        "stayed": _kept_rows(outcome),
    }


def _freed_rows(outcome: Outcome) -> list[_Row]:
    """Table rows of what was freed: name, how, and bytes where they are known."""
    released = outcome.report.released
    tensors = [
        {"what": item.describe(), "how": _how(item), "nbytes": item.nbytes}
        for item in sorted(released, key=lambda item: -item.nbytes)
        if item.kind == "tensor"
    ]
    modules = [*dict.fromkeys(item.describe() for item in released if item.kind == "module")]
    return [
        *_name_rows(outcome.unloaded, how="unloaded by ComfyUI"),
        *_name_rows(
            outcome.evicted, how="its outputs left the cache; the node runs again when they are needed"
        ),
        *_first_rows(tensors),
        *_name_rows(modules, how="stripped"),
    ]


def _how(item: Item) -> str:
    if item.owner is None:
        return "released"
    # ComfyUI names the module of a custom node by its full path (`load_custom_node` in nodes.py).
    return f"released; owner: {_FOLDER.sub('', item.owner)}"


def _kept_rows(outcome: Outcome) -> list[_Row]:
    """Table rows of what was kept although the prompt does not need it: name, reason, bytes."""
    skipped = [
        {"what": item.describe(), "why": item.reason, "nbytes": item.nbytes}
        for item in outcome.report.skipped
    ]
    return [
        *_kept_memory_rows(outcome.kept_by_packs, "its node pack keeps it"),
        *_kept_memory_rows(outcome.pinned, "ComfyUI has pinned memory for it"),
        *(
            {"what": "tensors and models", "why": _WHY_SPARED.get(guard, guard), "nbytes": nbytes}
            for guard, nbytes in outcome.report.spared.items()
        ),
        *_first_rows(skipped),
    ]


def _kept_memory_rows(left: list[KeptMemory], why: str) -> list[_Row]:
    return _first_rows([{"what": one.where, "why": why, "nbytes": one.nbytes} for one in left])


def _name_rows(names: list[str], **reason: str) -> list[_Row]:
    return _first_rows([{"what": name, **reason} for name in names])


def _first_rows(rows: list[_Row]) -> list[_Row]:
    """The first rows, and one row for all others."""
    if len(rows) <= _LARGEST:
        return rows
    rest = rows[_LARGEST:]
    more = {**rest[-1], "what": f"{len(rest):,} more"}
    if "nbytes" in more:
        more["nbytes"] = sum(row["nbytes"] for row in rest)
    return [*rows[:_LARGEST], more]


def _memory(reading: MemoryReading) -> dict[str, int]:
    """Bytes by device: the resident set of the process, and what each device's allocator reserved."""
    return {"cpu": reading.rss, **{name: device.reserved for name, device in reading.devices.items()}}


def _join_first(names: list[str]) -> str:
    shown = ", ".join(names[:_LARGEST])
    return shown if len(names) <= _LARGEST else f"{shown} and {len(names) - _LARGEST} more"
