"""Text output: sizes, and tables as plain text or as HTML."""

from io import StringIO
from typing import Any

import psutil._common
from rich.console import Console, RenderableType
from rich.table import Column

_WIDTH = 100


class Printable:
    """A base class for results: text for `str` and a terminal IPython, HTML for a notebook."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        # IPython prefers a `__repr__` of the class itself to an inherited `_repr_pretty_`
        # (IPython/lib/pretty.py).
        cls._repr_pretty_ = Printable._repr_pretty_  # type: ignore[method-assign]

    def __str__(self) -> str:
        return render(self._renderable())

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return render_html(self._renderable())

    def _renderable(self) -> RenderableType:
        raise NotImplementedError


def human(nbytes: int) -> str:
    """A size in bytes with a binary unit.

    >>> human(3 * 2**29), human(-2048), human(12)
    ('1.5 GiB', '-2.0 KiB', '12 B')
    """
    if abs(nbytes) < 1 << 10:
        return f"{nbytes} B"
    sign = "-" if nbytes < 0 else ""
    size: str = psutil._common.bytes2human(abs(nbytes), format="%(value).1f %(symbol)siB")
    return sign + size


def render(content: RenderableType) -> str:
    """Plain text without colours, the same in every terminal and notebook."""
    console = _console(color_system=None)
    with console.capture() as capture:
        console.print(content)
    return capture.get().rstrip()


def render_html(content: RenderableType) -> str:
    """The same as `render`, as HTML for a notebook."""
    # Rich does not record captured output (`Console._write_buffer`), so it is printed to a buffer.
    console = _console(record=True, file=StringIO())
    console.print(content)
    # Box-drawing characters connect only at the normal line height.
    code_format = '<pre style="line-height: normal; overflow-x: auto">{code}</pre>'
    return console.export_html(inline_styles=True, code_format=code_format)


def _console(**options: Any) -> Console:
    # In a terminal or notebook rich would print by itself. Without markup, because names may have brackets.
    plain: dict[str, Any] = {"no_color": True, "markup": False}
    plain |= {"force_terminal": False, "force_jupyter": False}
    return Console(width=_WIDTH, **plain, **options)


def right(name: str) -> Column:
    """A right-aligned column, for numbers."""
    return Column(name, justify="right")
