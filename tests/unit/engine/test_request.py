"""An invalid argument is an error that names it, before anything is released."""

from __future__ import annotations

from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import Guard
from fastpurge.engine.request import parse

BAD: dict[str, tuple[Any, list[Any]]] = {
    "models": (TypeError, ["yes", 1, None]),
    "wipe": (TypeError, ["no", 0, None]),
    "min_bytes": ((TypeError, ValueError), [-1, 1.5, "1M", True, None]),
    "devices": ((TypeError, ValueError), ["gpu", "cuda:x", 3, [], ["cpu", 3], [None], object()]),
    "guards": (TypeError, ["ALIAS", 1, None, ["ALIAS"]]),
    "collect": (ValueError, ["yes", None, 1, 0, "AUTO"]),
    "label": (TypeError, [3, b"label"]),
}
CASES = [(name, value, error) for name, (error, values) in BAD.items() for value in values]


@pytest.mark.parametrize("call", [fastpurge.sweep, fastpurge.plan])
@pytest.mark.parametrize(("name", "value", "error"), CASES)
def test_bad_input_names_the_argument_and_changes_nothing(
    call: Any, name: str, value: object, error: Any, program: Any
) -> None:
    program.FORGOTTEN = torch.ones(3)
    arguments: dict[str, Any] = {"keep": (), name: value}
    with pytest.raises(error, match=name):
        call(**arguments)
    assert program.FORGOTTEN.tolist() == [1, 1, 1]


@pytest.mark.parametrize("call", [fastpurge.sweep, fastpurge.plan])
def test_keep_is_required_and_unknown_arguments_are_refused(call: Any) -> None:
    with pytest.raises(TypeError, match="keep"):
        call()
    with pytest.raises(TypeError, match="positional"):
        call([])
    with pytest.raises(TypeError, match="kepe"):
        call(keep=(), kepe=())


def test_an_error_says_what_is_accepted() -> None:
    with pytest.raises(TypeError, match=r"Guard\.ALIAS"):
        fastpurge.plan(keep=(), guards="ALIAS")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'auto'"):
        fastpurge.plan(keep=(), collect="never")  # type: ignore[arg-type]


def _devices(devices: Any) -> Any:
    return parse(
        keep=(),
        devices=devices,
        models=True,
        wipe=False,
        min_bytes=0,
        guards=Guard.ALL,
        collect="auto",
        label=None,
        caller="here",
    )


@pytest.mark.parametrize(
    ("asked", "device", "covered"),
    [
        (None, "cuda:3", True),
        ("cpu", "cpu", True),
        ("cpu", "cuda:0", False),
        ("cuda", "cuda:1", True),
        ("cuda:1", "cuda:1", True),
        ("cuda:1", "cuda:0", False),
        (torch.device("meta"), "meta", True),
        (["cpu", torch.device("cuda:1")], "cuda:1", True),
        (["cpu", torch.device("cuda:1")], "cuda:0", False),
        ({"mps"}, "cpu", False),
    ],
)
def test_a_device_without_an_index_covers_every_index(asked: Any, device: str, covered: bool) -> None:
    assert _devices(asked).covers(torch.device(device)) is covered


def test_the_label_defaults_to_the_caller() -> None:
    assert _devices(None).label == "here"
