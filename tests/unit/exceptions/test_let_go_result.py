"""The result of `let_go` lists what it freed, with sizes."""

from __future__ import annotations

import json
from typing import Any

import fastpurge
import pytest
import torch

from tests.unit.exceptions.failing_functions import MiB, alive, big, caught, run_out_of_memory


def test_memory_counts_once_and_not_if_it_is_still_in_use(program: Any) -> None:
    program.tensor = big(2)

    def fail() -> None:
        mine = big(3)
        views = [mine[:1], mine[1:], program.tensor[:1]]
        raise ValueError(len(views))

    gone = fastpurge.let_go(caught(fail))
    assert gone.nbytes == 3 * MiB
    assert len(gone.held[0].items) == 4


def test_objects_freed_by_garbage_collection_are_reported() -> None:
    def fail() -> None:
        module = torch.nn.Linear(MiB // 4, 1)
        module.itself = [module]  # type: ignore[assignment]
        raise ValueError(module.in_features)

    gone = fastpurge.let_go(caught(fail))
    (held,) = gone.held
    assert held.holder == "reference cycles through these"
    assert sorted(item.type_name for item in held.items) == ["Linear", "Parameter", "Parameter"]
    assert held.nbytes == MiB + 4


def test_earlier_garbage_is_not_reported() -> None:
    node: dict[str, Any] = {"tensor": big()}
    node["itself"] = node
    del node
    assert fastpurge.let_go(caught(run_out_of_memory)).nbytes == 5 * MiB


def test_a_tensor_that_cannot_be_described_is_released() -> None:
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


def test_the_result_can_be_printed_and_stored_as_json() -> None:
    gone = fastpurge.let_go(caught(run_out_of_memory))
    text = str(gone)
    assert "fastpurge let go of 5.0 MiB" in text
    assert "3.0 MiB" in text
    assert "fastpurge let go of 5.0 MiB" in gone._repr_html_()
    data = json.loads(json.dumps(gone.to_dict()))
    assert data["nbytes"] == 5 * MiB
    assert data["held"][0]["items"][0]["dtype"] == "float32"
    assert data["remains"] == []


def test_locals_are_released_even_without_memory_for_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    error = caught(run_out_of_memory)
    assert alive() == 2
    monkeypatch.setattr("fastpurge.exceptions.let_go.LiveObjects", short)
    gone = fastpurge.let_go(error)
    assert alive() == 0
    assert gone.held == ()
    assert gone.remains[0].startswith("too little memory to report what was freed")
