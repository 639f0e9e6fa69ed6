"""The text and the JSON of a report."""

from __future__ import annotations

import json
from typing import Any

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge.reporting.items import Item

MiB = 2**20


@pytest.mark.imports_much
def test_a_report_can_be_printed_and_stored_as_json(program: Any) -> None:
    program.tensor = torch.ones(1234)  # 4.8 KiB: no multiple of the page size, so no part of the resident set
    program.view = np.asarray(torch.ones(5))
    report = fastpurge.sweep(keep=(), label="the report test")
    text = str(report)
    assert "the report test" in text
    assert "(1234,)" in text
    assert "4.8 KiB" not in text.split("released", maxsplit=1)[0]
    html = report._repr_html_()
    assert html.startswith("<pre")
    assert "the report test" in html
    assert "(1234,)" in html
    data = json.loads(json.dumps(report.to_dict()))
    assert data["label"] == "the report test"
    assert data["objects_scanned"] == report.objects_scanned > 100_000
    assert data["seconds"] > 0
    assert {"kind", "type_name", "shape", "dtype", "device", "nbytes", "reason", "owner", "held_by"} == set(
        data["released"][0]
    )


def test_the_old_name_of_owner_still_reads_it_and_warns() -> None:
    item = Item("tensor", "Tensor", owner="cache[0]")
    with pytest.warns(DeprecationWarning, match="owner"):
        assert item.held_by == "cache[0]"


def test_an_empty_report_says_so() -> None:
    fastpurge.sweep(keep=())
    text = str(fastpurge.sweep(keep=()))
    assert "nothing released" in text


def test_the_label_is_the_callers_line(program: Any) -> None:
    program.tensor = torch.ones(3)
    report = fastpurge.sweep(keep=())
    assert report.label.startswith(__file__ + ":")
    with pytest.raises(fastpurge.PurgedError, match=r"test_report\.py:"):
        program.tensor + 1


def test_the_largest_released_items_are_listed_with_their_owners(program: Any) -> None:
    program.cache = {"old": [torch.ones(1000, 1000)], "small": torch.ones(3)}
    program.model = torch.nn.Linear(1000, 2000)
    report = fastpurge.sweep(keep=())
    referent = {item.owner: item.nbytes for item in report.released if item.owner is not None}
    name = program.__name__
    assert referent == {f"{name}.model.weight": 8_000_000, f"{name}.cache['old'][0]": 4_000_000}
    assert f"3.8 MiB was held by {name}.cache['old'][0]" in str(report)


def test_the_owner_of_an_object_in_a_running_function_is_reported() -> None:
    class Trainer:
        history: torch.Tensor

    trainer = Trainer()
    trainer.history = torch.ones(1000, 1000)
    report = fastpurge.sweep(keep=())
    [referent] = [item.owner for item in report.released if item.owner is not None]
    assert referent.startswith("trainer.history, in test_the_owner_of_an_object_in_a_running_function")


def test_names_are_escaped_in_html(program: Any) -> None:
    program.tensor = torch.ones(1234).as_subclass(type("Model[/b][int]", (torch.Tensor,), {}))
    report = fastpurge.sweep(keep=())
    assert "Model[/b][int]" in str(report)
    assert "Model[/b][int]" in report._repr_html_()
