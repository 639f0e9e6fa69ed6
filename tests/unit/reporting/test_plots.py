"""Plots of a report are correct and reproducible, and only plotting imports matplotlib."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fastpurge
import pytest
import torch
from fastpurge.allocators.memory import DeviceMemory, MemoryReading
from fastpurge.reporting import plots
from fastpurge.reporting.items import Item
from matplotlib.figure import Figure

MiB = 2**20


def test_the_bars_are_as_long_as_the_numbers(program: Any) -> None:
    program.tensors = [torch.ones(2, MiB // 4), torch.ones(2, MiB // 4), torch.ones(3, MiB // 4)]
    report = fastpurge.sweep(keep=())
    figure = report.plot()
    assert isinstance(figure, Figure)
    memory, items = figure.axes
    assert [bar.get_width() for bar in memory.patches] == [report.before.rss, report.after.rss]  # type: ignore[attr-defined]
    names = [label.get_text() for label in items.get_yticklabels()]
    lengths = dict(zip(names, [bar.get_width() for bar in items.patches], strict=True))  # type: ignore[attr-defined]
    assert lengths["2x Tensor (2, 262144) float32, cpu"] == 4 * MiB
    assert lengths["Tensor (3, 262144) float32, cpu"] == 3 * MiB
    assert names[0].startswith("2x")
    assert [text.get_text() for text in items.texts][:2] == ["4.0 MiB", "3.0 MiB"]


def test_every_device_has_bars_and_small_items_share_one() -> None:
    before = MemoryReading(5, {"cuda:0": DeviceMemory(7, 9), "xpu:0": DeviceMemory(1, 1)})
    after = MemoryReading(3, {"cuda:0": DeviceMemory(2, 4)})
    released = [Item("tensor", "Tensor", (size,), "int8", "cuda:0", size) for size in range(10)]
    memory, items = plots.figure_of(before, after, released).axes
    assert [label.get_text() for label in memory.get_yticklabels()] == ["cpu", "cuda:0"]
    assert [bar.get_width() for bar in memory.patches] == [5, 9, 3, 4]  # type: ignore[attr-defined]
    assert [bar.get_width() for bar in items.patches] == [9, 8, 7, 6, 5, 4, 1 + 2 + 3]  # type: ignore[attr-defined]
    assert items.get_yticklabels()[-1].get_text() == "3 more kinds"
    _, items = plots.figure_of(before, after, [Item("module", "Linear")]).axes
    assert items.get_title(loc="left") == "nothing with memory was released"


def test_the_picture_in_a_notebook_is_the_same_every_time_and_small(program: Any) -> None:
    program.tensors = [torch.ones(size, 100) for size in range(1, 50)]
    report = fastpurge.sweep(keep=())
    html = report._repr_html_()
    assert html == report._repr_html_()
    assert "<pre" in html.split("<svg", maxsplit=1)[0]
    picture = html[html.index("<svg") :]
    assert len(picture.encode()) < 40_000
    assert "<dc:date>" not in picture
    texts = "".join(ElementTree.fromstring(picture).itertext())
    assert "largest released" in texts
    assert "Tensor (49, 100) float32, cpu" in texts


def test_a_picture_is_legible_on_white_and_on_black(tmp_path: Path) -> None:
    from matplotlib.image import imread

    figure = plots.figure_of(MemoryReading(5, {}), MemoryReading(3, {}), [])
    plots.save(figure, tmp_path / "plot.png")
    pixels = imread(tmp_path / "plot.png")
    drawn = pixels[pixels[..., 3] == 1][..., :3] @ (0.299, 0.587, 0.114)
    assert (pixels[..., 3] == 0).mean() > 0.5  # no background
    assert drawn.min() > 0.25
    assert drawn.max() < 0.75


def test_an_unwritable_plot_file_is_an_error_before_the_sweep(tmp_path: Path) -> None:
    plots.check(tmp_path / "plot.svg")
    plots.check(Path("plot.png"))
    with pytest.raises(ValueError, match=r"plot\.docx: a plot is written as one of .*\.png.*\.svg"):
        plots.check(tmp_path / "plot.docx")
    with pytest.raises(ValueError, match="there is no folder"):
        plots.check(tmp_path / "nowhere" / "plot.svg")


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never() -> None:
    program = """
import sys, torch, fastpurge
junk = torch.ones(5)
report = fastpurge.sweep(keep=())
str(report), report.to_dict()
print("matplotlib" in sys.modules)
report._repr_html_()
print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    assert run(program) == "False\nTrue False\n"


def test_without_matplotlib_the_table_stays_and_a_plot_says_what_to_install() -> None:
    program = """
import sys
sys.modules["matplotlib"] = None  # what is not installed cannot be imported
import torch, fastpurge
junk = torch.ones(5)
report = fastpurge.sweep(keep=())
html = report._repr_html_()
print("(5,)" in html, "<svg" in html)
try:
    report.plot()
except ImportError as error:
    print(error)
"""
    first, second = run(program).splitlines()
    assert first == "True False"
    assert "pip install 'torch-fastpurge[plot]'" in second


def test_a_report_is_shown_without_its_picture_if_matplotlib_cannot_draw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such backend")

    report = fastpurge.sweep(keep=())
    assert "<svg" in report._repr_html_()
    monkeypatch.setattr("fastpurge.reporting.plots.figure_of", fail)
    assert "<svg" not in report._repr_html_()
    assert "<pre" in report._repr_html_()


def test_a_picture_has_no_css_rules_for_the_surrounding_page() -> None:
    shown = fastpurge.sweep(keep=())._repr_html_()
    assert "<svg stroke-linejoin" in shown
    assert "<style" not in shown
