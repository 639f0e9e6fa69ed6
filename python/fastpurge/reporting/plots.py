"""Plots of reports. Only this file uses matplotlib."""

import re
from collections import defaultdict
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpurge.allocators.memory import MemoryReading
from fastpurge.reporting.items import Item
from fastpurge.reporting.text import human

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LARGEST = 6
# Of medium lightness, to be visible on white and on black. Blue and orange of Okabe and Ito, which the
# colour-blind can distinguish, and a grey.
_BEFORE, _AFTER, _ITEMS = "#e08214", "#3b8fd4", "#3b8fd4"
_TEXT = "#808080"
_STYLE = {
    "axes.facecolor": "none",
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _TEXT,
    "axes.titlesize": 10,
    "font.size": 9,
    "svg.fonttype": "none",  # text as text: small, and in the reader's font
    "text.usetex": False,  # some users switch it on, but it needs LaTeX
    "svg.hashsalt": "fastpurge",  # makes the ids in the file reproducible
    "text.color": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
}


def figure_of(before: MemoryReading, after: MemoryReading, released: Iterable[Item]) -> "Figure":
    """Draw memory before and after by device, and the largest released items, in one figure.

    Raises:
        ImportError: matplotlib is not installed.

    """
    matplotlib = _matplotlib()
    with matplotlib.rc_context(_STYLE):
        figure: Figure = matplotlib.figure.Figure(figsize=(7.2, 2.8), layout="constrained", facecolor="none")
        memory, items = figure.subplots(1, 2, width_ratios=(2, 3))
        _draw_memory(memory, before, after)
        _draw_items(items, released)
    return figure


def svg_of(figure: "Figure") -> str:
    """A figure as an ``<svg>`` element. The same figure gives the same bytes."""
    stream = StringIO()
    with _matplotlib().rc_context(_STYLE):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    # Its CSS rule for `*` would apply to the whole page.
    inline = _STYLE_RULES.sub("", text[text.index("<svg") :])
    return inline.replace("<svg", '<svg stroke-linejoin="round" stroke-linecap="butt"', 1)


_STYLE_RULES = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)


def check(file: Path) -> None:
    """Check that a figure can be written to a file.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the folder does not exist, or matplotlib cannot write this format.

    """
    kinds = _matplotlib().figure.Figure().canvas.get_supported_filetypes()
    if file.suffix.removeprefix(".") not in kinds:
        raise ValueError(f"{file}: a plot is written as one of .{', .'.join(sorted(kinds))}")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"{file}: there is no folder {file.absolute().parent}")


def save(figure: "Figure", file: Path) -> None:
    """Write a figure to a file, in the format of its suffix."""
    if file.suffix == ".svg":
        file.write_text(svg_of(figure), encoding="utf-8")
    else:
        figure.savefig(file, dpi=200)


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        raise ImportError(
            "plots need matplotlib, which is not installed: pip install 'torch-fastpurge[plot]', "
            "or pip install matplotlib",
            name="matplotlib",
        ) from None
    return matplotlib


def _draw_memory(axes: "Axes", before: MemoryReading, after: MemoryReading) -> None:
    rows = before.sizes_until(after)
    height = 0.38
    for at, colour, label in ((0, _BEFORE, "before"), (1, _AFTER, "after")):
        places = [number + (at - 0.5) * height for number in range(len(rows))]
        sizes = [row[at] for row in rows.values()]
        axes.bar_label(
            axes.barh(places, sizes, height, color=colour, label=label), [*map(human, sizes)], padding=3
        )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_title("memory", loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0), ncols=2, frameon=False)
    _tidy(axes, rows=max(len(rows), 3))


def _draw_items(axes: "Axes", released: Iterable[Item]) -> None:
    sizes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for item in released:
        if item.nbytes:
            row = sizes[f"{shorten(item.type_name)} {item.shape} {item.dtype}, {item.device}"]
            row[0] += 1
            row[1] += item.nbytes
    ranked = sorted(sizes.items(), key=lambda row: (-row[1][1], row[0]))
    rows = [(f"{count}x {name}" if count > 1 else name, size) for name, (count, size) in ranked[:_LARGEST]]
    if rest := ranked[_LARGEST:]:
        rows.append((f"{len(rest)} more kinds", sum(size for _, (_, size) in rest)))
    bars = axes.barh(range(len(rows)), [size for _, size in rows], 0.6, color=_ITEMS)
    axes.bar_label(bars, [human(size) for _, size in rows], padding=3)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_title("largest released" if rows else "nothing with memory was released", loc="left")
    axes.spines["left"].set_visible(bool(rows))
    _tidy(axes, rows=_LARGEST + 1)


def shorten(name: str) -> str:
    """A name cut to a length that leaves room for the bars."""
    return name if len(name) <= _NAME else f"{name[:_NAME]}..."


_NAME = 30


def _tidy(axes: "Axes", *, rows: int) -> None:
    """Fix the height of rows, so that a few are not thicker, and drop the scale: the bars have labels."""
    axes.set_ylim(rows - 0.5, -0.5)
    axes.margins(x=0.35)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)
