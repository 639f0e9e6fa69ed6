"""What is told as text: bytes as a person reads them, tables in a terminal and as HTML in a notebook."""

from io import StringIO
from typing import Any

import psutil._common
from rich.console import Console, RenderableType
from rich.table import Column

_WIDTH = 100


class Printable:
    """Something that is told as text: by `str`, in a terminal IPython, and as HTML in a notebook."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        # IPython takes a `__repr__` of the class itself before what it inherits (IPython/lib/pretty.py).
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
    """Bytes as a person reads them.

    >>> human(3 * 2**29)
    '1.5G'
    """
    sign = "-" if nbytes < 0 else ""
    size: str = psutil._common.bytes2human(abs(nbytes))
    return sign + size


def render(content: RenderableType) -> str:
    """Plain text, no colours, the same on every terminal and in every notebook."""
    console = _console(color_system=None)
    with console.capture() as capture:
        console.print(content)
    return capture.get().rstrip()


def render_html(content: RenderableType) -> str:
    """The same as `render`, as HTML for a notebook."""
    # What is captured is not recorded (`Console._write_buffer`), so it is printed to nowhere.
    console = _console(record=True, file=StringIO())
    console.print(content)
    # Box-drawing characters meet only at the line height of the font.
    code_format = '<pre style="line-height: normal; overflow-x: auto">{code}</pre>'
    return console.export_html(inline_styles=True, code_format=code_format)


def _console(**options: Any) -> Console:
    # Neither a terminal nor a notebook: there it would show things by itself. Names may have brackets.
    plain: dict[str, Any] = {"no_color": True, "markup": False}
    plain |= {"force_terminal": False, "force_jupyter": False}
    return Console(width=_WIDTH, **plain, **options)


def right(name: str) -> Column:
    """A column of numbers."""
    return Column(name, justify="right")
