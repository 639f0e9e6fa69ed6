"""The result of `let_go` lists what it freed, with sizes."""

from __future__ import annotations

import json
from typing import Any

import fastpurge
import pytest
import torch

from tests.unit.exceptions.failing_functions import MiB, alive, big, caught, run_out_of_memory


def test_memory_counts_once_and_only_if_nothing_alive_stands_on_it(program: Any) -> None:
    program.tensor = big(2)

    def fail() -> None:
        mine = big(3)
        views = [mine[:1], mine[1:], program.tensor[:1]]
        raise ValueError(len(views))

    gone = fastpurge.let_go(caught(fail))
    assert gone.nbytes == 3 * MiB
    assert len(gone.held[0].items) == 4


def test_what_dies_only_when_garbage_is_collected_is_told_as_well() -> None:
    def fail() -> None:
        module = torch.nn.Linear(MiB // 4, 1)
        module.itself = [module]  # type: ignore[assignment]
        raise ValueError(module.in_features)

    gone = fastpurge.let_go(caught(fail))
    (held,) = gone.held
    assert held.holder == "cycles that these were in"
    assert sorted(item.type_name for item in held.items) == ["Linear", "Parameter", "Parameter"]
    assert held.nbytes == MiB + 4


def test_what_was_garbage_before_is_not_told() -> None:
    node: dict[str, Any] = {"tensor": big()}
    node["itself"] = node
    del node
    assert fastpurge.let_go(caught(run_out_of_memory)).nbytes == 5 * MiB


def test_a_tensor_that_cannot_say_what_it_is_dies_like_any_other() -> None:
    class Secret(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("secret")

    def fail() -> None:
        wrapped = torch.Tensor._make_wrapper_subclass(
            Secret, (3,), dispatch_sizes_strides_policy="sizes", dispatch_device=True
        )
        raise ValueError(type(wrapped).__name__)

    (held,) = fastpurge.let_go(caught(fail)).held
    assert held.items[0].type_name.endswith("Secret")
    assert held.nbytes == 0


def test_what_was_let_go_reads_well_and_goes_through_json() -> None:
    gone = fastpurge.let_go(caught(run_out_of_memory))
    text = str(gone)
    assert "fastpurge let go of 5.0M" in text
    assert "3.0M" in text
    assert "fastpurge let go of 5.0M" in gone._repr_html_()
    data = json.loads(json.dumps(gone.to_dict()))
    assert data["nbytes"] == 5 * MiB
    assert data["held"][0]["items"][0]["dtype"] == "float32"
    assert data["remains"] == []


def test_with_too_little_memory_to_tell_it_lets_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    error = caught(run_out_of_memory)
    assert alive() == 2
    monkeypatch.setattr("fastpurge.exceptions.let_go.Living", short)
    gone = fastpurge.let_go(error)
    assert alive() == 0
    assert gone.held == ()
    assert gone.remains[0].startswith("too little memory to say what was held")
