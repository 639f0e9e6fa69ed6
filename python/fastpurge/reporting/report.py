"""The report of a sweep, and the tables that a plan prints too. Reads nothing from the heap."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastpurge.reporting.items import Item, as_plain
from fastpurge.reporting.text import Printable, human, right

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastpurge.allocators.memory import MemoryReading

_LARGEST = 10


@dataclass(frozen=True, slots=True)
class SweepReport(Printable):
    """What a sweep did.

    Attributes:
        label: the label of the sweep.
        freed_bytes: the sum of ``freed_by_device``.
        freed_by_device: bytes freed, as measured: for ``"cpu"`` the decrease of the resident set, for other
            devices what their allocator returned to the driver.
        released: what became tombstones.
        skipped: what could not be released, each with its ``reason``.
        spared: bytes that each guard spared, by the guard's name in lower case. What `Guard.RUNNING` spared
            for a known owner in C or C++ is under ``"torchscript"``, ``"autograd hooks"`` or ``"numpy"``.
        objects_scanned: how many objects the garbage collector tracked.
        seconds: the duration of the sweep.
        before: memory before the sweep.
        after: memory after it.

    """

    label: str
    released: tuple[Item, ...]
    skipped: tuple[Item, ...]
    spared: dict[str, int]
    objects_scanned: int
    seconds: float
    before: "MemoryReading"
    after: "MemoryReading"
    freed_by_device: dict[str, int] = field(init=False)
    freed_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        # A frozen dataclass sets its derived fields this way (the `dataclasses` documentation).
        object.__setattr__(self, "freed_by_device", self.before.freed_until(self.after))
        object.__setattr__(self, "freed_bytes", sum(self.freed_by_device.values()))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for `json.dumps`. An item has ``owner``, and the same as ``held_by``."""
        return as_plain(self)

    def plot(self) -> "Figure":
        """Draw memory before and after by device, and the largest released items.

        The figure is transparent and has no backend: a notebook shows it, and
        ``figure.savefig("report.svg")`` writes it.

        Raises:
            ImportError: matplotlib is not installed; the message says how to install it.

        Examples:
            >>> import fastpurge
            >>> report = fastpurge.sweep(keep=())
            >>> report.plot().savefig("report.png", dpi=200)

        """
        from fastpurge.reporting.plots import figure_of

        return figure_of(self.before, self.after, self.released)

    def _repr_html_(self) -> str:
        # `super()` does not work here: `dataclass(slots=True)` makes a new class.
        return Printable._repr_html_(self) + self._picture()

    def _picture(self) -> str:
        """The plot as inline SVG; empty if matplotlib is not installed."""
        from fastpurge.reporting.plots import svg_of

        try:
            return svg_of(self.plot())
        except Exception:  # noqa: BLE001 - matplotlib can fail in many ways; the tables remain
            return ""

    def _renderable(self) -> RenderableType:
        return Group(
            _headline(
                f"fastpurge freed {human(self.freed_bytes)} in {self.seconds * 1e3:.1f} ms ({self.label})"
            ),
            self._memory_table(),
            items_table("released", self.released),
            _owners_text(self.released),
            _unwiped_text(self.released),
            reasons_text(self.skipped, self.spared),
            f"{self.objects_scanned:,} objects scanned",
        )

    def _memory_table(self) -> Table:
        table = Table("memory", *(right(name) for name in ("before", "after", "freed")))
        for cells in memory_rows(self.before, self.after):
            table.add_row(*cells)
        return table


def memory_rows(before: "MemoryReading", after: "MemoryReading") -> Iterator[tuple[str, str, str, str]]:
    """Table rows for two readings: device, size before, size after, size freed. The first row is the CPU."""
    for device, (first, last) in before.sizes_until(after).items():
        name = "cpu (resident)" if device == "cpu" else f"{device} (reserved)"
        yield name, human(first), human(last), human(first - last)


def items_table(title: str, items: Iterable[Item]) -> RenderableType:
    """A table of items, equal ones in one row, the largest first."""
    rows: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
    for item in items:
        shape = "" if item.shape is None else str(item.shape)
        row = rows[(item.kind, item.type_name, shape, item.dtype or "", item.device or "")]
        row[0] += 1
        row[1] += item.nbytes
    count, size = (sum(row[at] for row in rows.values()) for at in (0, 1))
    if not count:
        return Text(f"nothing {title}")
    table = Table(title, "type", "shape", "dtype", "device", right("count"), right("size"), show_footer=True)
    ranked = sorted(rows.items(), key=lambda row: (-row[1][1], -row[1][0], row[0]))
    for cells, (number, nbytes) in ranked[:_LARGEST]:
        table.add_row(*cells, f"{number:,}", human(nbytes) if cells[0] == "tensor" else "")
    if rest := ranked[_LARGEST:]:
        number, nbytes = (sum(row[1][at] for row in rest) for at in (0, 1))
        table.add_row(f"{len(rest)} more rows", "", "", "", "", f"{number:,}", human(nbytes))
    table.columns[-2].footer, table.columns[-1].footer = f"{count:,}", human(size)
    return table


def _owners_text(released: Iterable[Item]) -> RenderableType:
    """The owners of the largest released items."""
    with_owner = [item for item in released if item.owner is not None]
    lines = [f"{human(item.nbytes)} was held by {item.owner}" for item in with_owner]
    return Text("\n".join(lines)) if lines else Group()


def _unwiped_text(released: Iterable[Item]) -> RenderableType:
    """The released items that were not wiped, with the reasons."""
    lines = [f"{item.describe()} was {item.reason}" for item in released if item.reason is not None]
    return Text("\n".join(lines)) if lines else Group()


def reasons_text(skipped: Iterable[Item], spared: Mapping[str, int]) -> RenderableType:
    """Bytes spared by each guard, and the skipped items with their reasons."""
    lines = [f"spared by {guard}: {human(nbytes)}" for guard, nbytes in spared.items()]
    lines += [f"skipped {item.describe()}: {item.reason}" for item in skipped]
    return Text("\n".join(lines) if lines else "nothing spared, nothing skipped")


def _headline(text: str) -> Text:
    return Text(text, style="bold")
