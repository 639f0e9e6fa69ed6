"""What a purge has to say: in lines for the canvas and the log, and as JSON for the front end."""

import re
from typing import Any

from fastpurge.allocators.memory import MemoryReading
from fastpurge.comfy.comfyui.pack_storage import Left
from fastpurge.comfy.nodes.purges import Outcome
from fastpurge.reporting.items import Item
from fastpurge.reporting.text import human

_LARGEST = 10

_WHY_SPARED = {
    "autograd": "an autograd graph needs them for its backward",
    "library": "a library keeps them for itself",
    "alias": "they share memory with what is kept",
    "running": "code that runs holds them",
}

_FOLDER = re.compile(r"^[^\['\"(]*[/\\]")

_Row = dict[str, Any]


def tell(outcome: Outcome) -> list[str]:
    """What was done, the measured figures first."""
    report = outcome.report
    freed = ", ".join(f"{human(nbytes)} {device}" for device, nbytes in report.freed_by_device.items())
    lines = [
        f"freed {freed} in {report.seconds * 1e3:.0f} ms",
        f"resident {human(report.before.rss)} -> {human(report.after.rss)}",
    ]
    for title, names in (("unloaded", outcome.unloaded), ("let go of", outcome.let_go)):
        if names:
            lines.append(f"{title} {_some(names)}")
    if tensors := [item for item in report.released if item.kind == "tensor"]:
        lines.append(f"released {len(tensors):,} tensors, {human(sum(one.nbytes for one in tensors))}")
    if modules := [item.type_name for item in report.released if item.kind == "module"]:
        lines.append(f"stripped {len(modules):,} modules, of {_some([*dict.fromkeys(modules)])}")
    lines += [f"spared {human(nbytes)}: {guard}" for guard, nbytes in report.spared.items()]
    lines += [f"could not release a {item.describe()}: {item.reason}" for item in report.skipped[:_LARGEST]]
    for title, kept in (("custom nodes keep it", outcome.left), ("ComfyUI has pinned it", outcome.pinned)):
        if kept:
            lines.append(
                f"left, since {title}: {_some([f'{one.where} ({human(one.nbytes)})' for one in kept])}"
            )
    if outcome.broken:
        lines.append(f"unprotected, and will fail if they run: {_some(outcome.broken)}")
    return lines


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """The same as plain values that fit into ComfyUI's history: of the items only the largest."""
    report = outcome.report
    largest = sorted(report.released, key=lambda item: -item.nbytes)[:_LARGEST]
    return {
        "label": report.label,
        "seconds": report.seconds,
        "freed_by_device": report.freed_by_device,
        "before": _memory(report.before),
        "after": _memory(report.after),
        "unloaded": outcome.unloaded,
        "let_go": outcome.let_go,
        "broken": outcome.broken,
        "left": [{"where": one.where, "nbytes": one.nbytes} for one in [*outcome.left, *outcome.pinned]],
        "spared": report.spared,
        "released": {"count": len(report.released), "nbytes": sum(item.nbytes for item in report.released)},
        "largest": [
            {"what": item.describe(), "nbytes": item.nbytes, "held_by": item.owner} for item in largest
        ],
        "skipped": [{"what": item.describe(), "why": item.reason} for item in report.skipped[:_LARGEST]],
        "went": _went(outcome),
        "stayed": _stayed(outcome),
    }


def _went(outcome: Outcome) -> list[_Row]:
    """Rows of a table: what went, how, and its size where it was counted."""
    released = outcome.report.released
    tensors = [
        {"what": item.describe(), "how": _how(item), "nbytes": item.nbytes}
        for item in sorted(released, key=lambda item: -item.nbytes)
        if item.kind == "tensor"
    ]
    modules = [*dict.fromkeys(item.describe() for item in released if item.kind == "module")]
    return [
        *_rows(outcome.unloaded, how="unloaded by ComfyUI"),
        *_rows(outcome.let_go, how="its results left the cache; it runs again when they are needed"),
        *_first(tensors),
        *_rows(modules, how="stripped"),
    ]


def _how(item: Item) -> str:
    if item.owner is None:
        return "released"
    # The module of a custom node is named by its whole path (`load_custom_node` in ComfyUI's nodes.py).
    return f"released; held by {_FOLDER.sub('', item.owner)}"


def _stayed(outcome: Outcome) -> list[_Row]:
    """Rows of a table: what was not protected by the graph and stayed all the same, why, and its size."""
    skipped = [
        {"what": item.describe(), "why": item.reason, "nbytes": item.nbytes}
        for item in outcome.report.skipped
    ]
    return [
        *_left(outcome.left, "its node pack keeps it there"),
        *_left(outcome.pinned, "ComfyUI has pinned memory for it"),
        *(
            {"what": "tensors and models", "why": _WHY_SPARED.get(guard, guard), "nbytes": nbytes}
            for guard, nbytes in outcome.report.spared.items()
        ),
        *_first(skipped),
    ]


def _left(left: list[Left], why: str) -> list[_Row]:
    return _first([{"what": one.where, "why": why, "nbytes": one.nbytes} for one in left])


def _rows(names: list[str], **reason: str) -> list[_Row]:
    return _first([{"what": name, **reason} for name in names])


def _first(rows: list[_Row]) -> list[_Row]:
    """The first rows, and the rest of them in one."""
    if len(rows) <= _LARGEST:
        return rows
    rest = rows[_LARGEST:]
    more = {**rest[-1], "what": f"{len(rest):,} more"}
    if "nbytes" in more:
        more["nbytes"] = sum(row["nbytes"] for row in rest)
    return [*rows[:_LARGEST], more]


def _memory(reading: MemoryReading) -> dict[str, int]:
    """Bytes by device: of the host the resident set, of the others what their allocator has reserved."""
    return {"cpu": reading.rss, **{name: device.reserved for name, device in reading.devices.items()}}


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_LARGEST])
    return shown if len(names) <= _LARGEST else f"{shown} and {len(names) - _LARGEST} more"
