"""A census as an image: a bar for each device, then the largest owners."""

from PIL import Image, ImageDraw, ImageFont

from fastpurge.comfy.nodes.free_memory import FreeMemory
from fastpurge.inspection.census import Census, Share
from fastpurge.reporting.text import human

_WIDTH = 768
_MARGIN = 24
_ROW = 28
_BAR = 14
_TITLE_SIZE = 20
_TEXT_SIZE = 15
_LABEL_WIDTH = 300
_SIZE_WIDTH = 88

_BACKGROUND_COLOUR = "#1f2023"
_TEXT_COLOUR = "#e8e8ea"
_FAINT_COLOUR = "#9a9ca5"
_SCALE_COLOUR = "#34363c"
_LIVE_COLOUR = "#31b9f4"
_RESERVED_COLOUR = "#2b6f8f"

_SHARES = 8
_LONGEST = 100


def draw(census: Census, free: FreeMemory) -> Image.Image:
    """Draw a census. The height of the image depends on the number of rows."""
    libraries = census.by_holder[:_SHARES]
    owners = census.by_owner[:_SHARES]
    rows = 5 + len(census.devices) + len(libraries) + len(owners)
    page = _Page(rows)
    page.title(f"{human(census.nbytes)} in {census.count:,} live tensors and arrays")
    page.text(free.to_text())
    page.text("process memory (bright: live tensors and arrays)")
    most = max((use.reserved for use in census.devices.values()), default=0)
    for name, use in census.devices.items():
        page.bar("cpu (resident)" if name == "cpu" else name, use.live, use.reserved, most)
    for title, shares in (("by module or library", libraries), ("by owner", owners)):
        page.text(title)
        _draw_shares(page, shares)
    return page.image


def _draw_shares(page: "_Page", shares: tuple[Share, ...]) -> None:
    most = max((share.nbytes for share in shares), default=0)
    for share in shares:
        page.bar(share.name, share.nbytes, share.nbytes, most)


class _Page:
    """Rows of text and bars, from top to bottom."""

    def __init__(self, rows: int) -> None:
        self.image = Image.new("RGB", (_WIDTH, 2 * _MARGIN + rows * _ROW), _BACKGROUND_COLOUR)
        self._draw = ImageDraw.Draw(self.image)
        self._title = ImageFont.load_default(_TITLE_SIZE)
        self._text = ImageFont.load_default(_TEXT_SIZE)
        self._top = _MARGIN

    def title(self, text: str) -> None:
        """A line of large text."""
        self._draw.text((_MARGIN, self._top), text, _TEXT_COLOUR, self._title)
        self._top += _ROW

    def text(self, text: str) -> None:
        """A line of small, faint text."""
        self._draw.text((_MARGIN, self._top + 4), text, _FAINT_COLOUR, self._text)
        self._top += _ROW

    def bar(self, name: str, live: int, reserved: int, most: int) -> None:
        """A row: name, bar of the reserved bytes with the live part bright, and size."""
        self._draw.text((_MARGIN, self._top), self._shortened(name), _TEXT_COLOUR, self._text)
        left, right = _MARGIN + _LABEL_WIDTH, _WIDTH - _MARGIN - _SIZE_WIDTH
        for nbytes, colour in ((most, _SCALE_COLOUR), (reserved, _RESERVED_COLOUR), (live, _LIVE_COLOUR)):
            if length := round((right - left) * nbytes / max(most, 1)):
                box = (left, self._top + 2, left + length, self._top + 2 + _BAR)
                self._draw.rounded_rectangle(box, radius=3, fill=colour)
        self._draw.text((_WIDTH - _MARGIN, self._top), human(reserved), _TEXT_COLOUR, self._text, anchor="ra")
        self._top += _ROW

    def _shortened(self, name: str) -> str:
        """A name that fits into its column: the end of a path tells the most."""
        name = name[-_LONGEST:]
        shown = name
        while self._text.getlength(shown) > _LABEL_WIDTH - _MARGIN:
            name = name[1:]
            shown = f"...{name}"
        return shown
