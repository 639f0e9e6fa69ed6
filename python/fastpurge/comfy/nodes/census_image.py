"""A census as a picture: a bar for each device, then who holds the most."""

from PIL import Image, ImageDraw, ImageFont

from fastpurge.comfy.nodes.free_memory import Free
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

_PAPER = "#1f2023"
_INK = "#e8e8ea"
_FAINT = "#9a9ca5"
_TRACK = "#34363c"
_LIVE = "#31b9f4"
_HELD = "#2b6f8f"

_SHARES = 8
_LONGEST = 100


def draw(census: Census, free: Free) -> Image.Image:
    """Draw it, as high as what there is to say."""
    holders = census.by_holder[:_SHARES]
    owners = census.by_owner[:_SHARES]
    rows = 5 + len(census.devices) + len(holders) + len(owners)
    page = _Page(rows)
    page.title(f"{human(census.nbytes)} in {census.count:,} live tensors and arrays")
    page.text(free.tell())
    page.text("held by the process; of it, bright, in live tensors and arrays")
    most = max((use.reserved for use in census.devices.values()), default=0)
    for name, use in census.devices.items():
        page.bar("cpu (resident)" if name == "cpu" else name, use.live, use.reserved, most)
    for title, shares in (("held in", holders), ("held by", owners)):
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
        self.image = Image.new("RGB", (_WIDTH, 2 * _MARGIN + rows * _ROW), _PAPER)
        self._draw = ImageDraw.Draw(self.image)
        self._title = ImageFont.load_default(_TITLE_SIZE)
        self._text = ImageFont.load_default(_TEXT_SIZE)
        self._top = _MARGIN

    def title(self, text: str) -> None:
        """A line in large letters."""
        self._draw.text((_MARGIN, self._top), text, _INK, self._title)
        self._top += _ROW

    def text(self, text: str) -> None:
        """A line that says what follows."""
        self._draw.text((_MARGIN, self._top + 4), text, _FAINT, self._text)
        self._top += _ROW

    def bar(self, name: str, live: int, held: int, most: int) -> None:
        """A name, a bar of what is held, with what of it is live, and its size."""
        self._draw.text((_MARGIN, self._top), self._shortened(name), _INK, self._text)
        left, right = _MARGIN + _LABEL_WIDTH, _WIDTH - _MARGIN - _SIZE_WIDTH
        for nbytes, colour in ((most, _TRACK), (held, _HELD), (live, _LIVE)):
            if length := round((right - left) * nbytes / max(most, 1)):
                box = (left, self._top + 2, left + length, self._top + 2 + _BAR)
                self._draw.rounded_rectangle(box, radius=3, fill=colour)
        self._draw.text((_WIDTH - _MARGIN, self._top), human(held), _INK, self._text, anchor="ra")
        self._top += _ROW

    def _shortened(self, name: str) -> str:
        """The end of a name that is too long: a path says most there."""
        name = name[-_LONGEST:]
        shown = name
        while self._text.getlength(shown) > _LABEL_WIDTH - _MARGIN:
            name = name[1:]
            shown = f"...{name}"
        return shown
