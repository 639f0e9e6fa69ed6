"""Other versions of ComfyUI than the installed one: small models of the classes that differ.

Older versions have no ``execution_cache``: a pending node reads the output cache when it runs, and its
entries are lists of outputs. In 0.38 the methods of caches are coroutines, and caches have more dicts.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from fastpurge import is_purged
from fastpurge.comfy.nodes import purge_nodes

BIG = 5 << 20  # float32 elements: above the smallest size that a purge considers


class Graph:
    def __init__(self, prompt: dict[str, Any]) -> None:
        self.prompt = prompt

    def get_node(self, node: str) -> Any:
        return self.prompt[node]

    def has_node(self, node: str) -> bool:
        return node in self.prompt

    def get_display_node_id(self, node: str) -> str:
        return node


@dataclass
class Keys:
    keys: dict[str, Any]

    def get_data_key(self, node: str) -> Any:
        return self.keys.get(node)


class BasicCache:
    def __init__(self, dynprompt: Graph) -> None:
        self.dynprompt = dynprompt
        self.cache_key_set = Keys({node: ("key", node) for node in dynprompt.prompt})
        self.cache: dict[Any, Any] = {}
        self.subcaches: dict[Any, Any] = {}

    def store(self, node: str, value: Any) -> None:
        self.cache["key", node] = value


class NewestCache(BasicCache):
    def __init__(self, dynprompt: Graph) -> None:
        super().__init__(dynprompt)
        self.used_generation: dict[Any, int] = {}
        self.children: dict[Any, list[Any]] = {}
        self.timestamps: dict[Any, float] = {}

    def store(self, node: str, value: Any) -> None:
        super().store(node, value)
        key = ("key", node)
        self.used_generation[key], self.children[key], self.timestamps[key] = 1, [], 0.0

    async def get(self, node: str) -> Any:
        raise AssertionError("a get would count as a use")

    async def set(self, node: str, value: Any) -> None:
        raise AssertionError("no entry is to be set")


@dataclass
class ExecutionList:
    dynprompt: Graph
    output_cache: BasicCache
    pendingNodes: dict[str, bool] = field(default_factory=dict)  # noqa: N815 - ComfyUI's name


class InterruptProcessingException(Exception):  # noqa: N818 - ComfyUI's name
    pass


class ModelManagement(types.ModuleType):
    InterruptProcessingException = InterruptProcessingException
    current_loaded_models: list[Any]
    interrupted = False

    def interrupt_current_processing(self, value: bool) -> None:
        self.interrupted = value


@pytest.fixture
def management(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> ModelManagement:
    management = ModelManagement("comfy.model_management")
    management.current_loaded_models = []
    paths = types.SimpleNamespace(get_folder_paths=lambda _: [str(tmp_path)])
    link = lambda value: isinstance(value, list) and len(value) == 2  # noqa: E731
    modules = {
        "comfy": types.ModuleType("comfy"),
        "comfy.model_management": management,
        "comfy_execution": types.ModuleType("comfy_execution"),
        "comfy_execution.graph": types.SimpleNamespace(ExecutionList=ExecutionList),
        "comfy_execution.caching": types.SimpleNamespace(BasicCache=BasicCache),
        "comfy_execution.graph_utils": types.SimpleNamespace(is_link=link),
        "folder_paths": paths,
        "nodes": types.SimpleNamespace(NODE_CLASS_MAPPINGS={}, NODE_DISPLAY_NAME_MAPPINGS={}),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return management


@dataclass
class Running:
    """A prompt at node ``purge``: all readers of ``old`` have run, ``pending`` will read ``early``."""

    execution: ExecutionList
    outputs: BasicCache

    def purge(self, **inputs: Any) -> dict[str, Any]:
        node = purge_nodes.PurgePass()
        wired = self.outputs.cache["key", "wired"][0]
        return node.purge(dynprompt=[self.execution.dynprompt], unique_id=["purge"], data=wired, **inputs)


@pytest.fixture(params=[BasicCache, NewestCache], ids=["0.3.29", "0.38"])
def running(request: pytest.FixtureRequest, management: ModelManagement) -> Iterator[Running]:
    graph = Graph(
        {
            "old": {"class_type": "Old", "inputs": {}},
            "early": {"class_type": "Early", "inputs": {}},
            "wired": {"class_type": "Wired", "inputs": {"image": ["old", 0]}},
            "purge": {"class_type": "Purge", "inputs": {"data": ["wired", 0]}},
            "pending": {"class_type": "Pending", "inputs": {"a": ["early", 0], "b": ["purge", 0]}},
        }
    )
    outputs = request.param(graph)
    for value, node in enumerate(("old", "early", "wired")):
        outputs.store(node, [[torch.full((BIG,), float(value))]])
    yield Running(ExecutionList(graph, outputs, {"purge": True, "pending": True}), outputs)
    outputs.cache.clear()


def test_pending_and_wired_entries_are_kept_and_all_others_evicted(running: Running) -> None:
    answer = running.purge(mode=["RAM"])
    assert sorted(node for _, node in running.outputs.cache) == ["early", "wired"]
    assert running.outputs.cache["key", "early"][0][0].sum() == BIG
    assert answer["result"][0][0].mean() == 2
    assert any("dropped from the cache Old (node old)" in line for line in answer["ui"]["text"])
    for book in ("used_generation", "children", "timestamps"):
        assert ("key", "old") not in getattr(running.outputs, book, {})


class Owner:
    """Refers to a tensor from outside of running code."""

    def __init__(self, early: torch.Tensor) -> None:
        self.early = early


def test_unprotected_pending_entries_are_evicted_and_released(running: Running) -> None:
    early = running.outputs.cache["key", "early"][0][0]
    owner = Owner(early)
    del early
    answer = running.purge(mode=["RAM"], protect_pending=[False])
    assert sorted(node for _, node in running.outputs.cache) == ["wired"]
    assert is_purged(owner.early)
    assert not is_purged(answer["result"][0][0])


def test_an_interrupted_purge_passes_the_data_through_and_the_next_node_stops(
    running: Running, management: ModelManagement
) -> None:
    class Loaded:
        device, real_model, model = "cpu", None, object()

        def model_loaded_memory(self) -> int:
            return 0

    def free_memory(*_: Any, **__: Any) -> None:
        raise InterruptProcessingException

    management.current_loaded_models = [Loaded()]
    management.free_memory = free_memory  # type: ignore[attr-defined]
    answer = running.purge(mode=["VRAM"])
    assert answer["result"][0][0].mean() == 2
    assert answer["ui"]["text"] == ["interrupted: the purge was not finished"]
    assert management.interrupted


def test_nothing_is_purged_in_an_unsupported_comfyui(running: Running) -> None:
    stranger = Graph(running.execution.dynprompt.prompt)
    answer = purge_nodes.PurgeRAM().purge(dynprompt=[stranger], unique_id=["purge"])
    assert answer["ui"]["text"][0].startswith("failed: RuntimeError: cannot find the running prompt")
    assert len(running.outputs.cache) == 3


def test_a_terminal_node_is_never_cached() -> None:
    first, second = purge_nodes.PurgeAll.IS_CHANGED(), purge_nodes.PurgeAll.IS_CHANGED()
    assert math.isnan(first)
    assert [first] != [second]  # the same object would compare equal in a list
