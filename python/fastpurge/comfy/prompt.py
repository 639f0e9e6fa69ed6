"""The prompt that runs: what its nodes still to run will read, and where finished outputs are kept.

ComfyUI has one `ExecutionList` for a running prompt. Newer ones hold what a pending node will read in
``execution_cache[to][from]``; older ones look it up in the output cache when the node's turn comes. A node
can also come to need what it has no firm link to yet: by a lazy input, or by expanding into a sub-graph that
links to nodes upstream.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fastpurge import _core, keep
from fastpurge.comfy import caches
from fastpurge.tensors import is_a
from fastpurge.tombstones import PurgedModule, PurgedTensor


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that runs, seen from the node that runs now.

    Attributes:
        graph: its `DynamicPrompt`.
        execution: its `ExecutionList`.
        caches: every cache of ComfyUI that serves it, outputs first.
        node_id: the node that runs now.

    """

    graph: Any
    execution: Any
    caches: tuple[Any, ...]
    node_id: str

    @property
    def title(self) -> str:
        """The title and number of the node that runs now, as the user sees them."""
        return self.title_of(self.node_id)

    def title_of(self, node_id: str | None) -> str:
        """The title and number of a node, as the user sees them."""
        if node_id is None or not self.graph.has_node(node_id):
            return "a node of an earlier prompt"
        shown = self.graph.get_display_node_id(node_id)
        node = self.graph.get_node(shown)
        title = (node.get("_meta") or {}).get("title") or _display_name(node["class_type"])
        return f"{title} (node {shown})"

    def pending(self) -> list[str]:
        """The nodes still to run, without the one that runs now."""
        return [node for node in self.execution.pendingNodes if node != self.node_id]

    def reads(self) -> list[object]:
        """What the nodes still to run will read, and the instances of their classes."""
        return [value for node in self.pending() for value in self.reads_of(node)]

    def reads_of(self, node_id: str) -> list[object]:
        """What a node will read when its turn comes, and the instance of its class."""
        handed = getattr(self.execution, "execution_cache", {}).get(node_id, {})
        instances = (found for cache in self.caches[1:] for found in caches.get(cache, node_id))
        return [
            self.graph.get_node(node_id)["inputs"],
            *handed.values(),
            *self._upstream(node_id),
            *instances,
        ]

    def wired(self) -> list[object]:
        """The cache entries that feed the node that runs now, with those of their outputs that do not."""
        sources = self._sources(self.node_id)
        return [entry for source in sources for entry in caches.get(self.caches[0], source)]

    def broken(self) -> list[str]:
        """The nodes still to run that will meet a tombstone. It is seen to that no cache gets hold of one."""
        tombstones = _core.scan((PurgedTensor, PurgedModule))
        if not tombstones:
            return []
        nodes = [node for node in self.pending() if _reaches(self.reads_of(node), tombstones)]
        for node in nodes:
            handed = getattr(self.execution, "execution_cache", {}).get(node, {})
            for source, entry in handed.items():
                if _reaches([entry], tombstones):
                    handed[source] = caches.evicted_when_read(entry, self.caches)
        return nodes

    def _upstream(self, node_id: str) -> Iterator[object]:
        """Cached outputs that a node links to, through nodes without any; all upstream, if it may expand."""
        through = self._may_expand(node_id)
        todo, seen = [node_id], {node_id}
        while todo:
            for source in self._sources(todo.pop()):
                entries = list(caches.get(self.caches[0], source))
                yield from entries
                if source not in seen and (through or not entries):
                    seen.add(source)
                    todo.append(source)

    def _sources(self, node_id: str) -> Iterator[str]:
        """The nodes that a node links to, whether it needs them yet or not."""
        if self.graph.has_node(node_id):
            for value in self.graph.get_node(node_id)["inputs"].values():
                if _is_link(value):
                    yield value[0]

    def _may_expand(self, node_id: str) -> bool:
        """Whether a node asks for the graph, as those do that expand into copies of what is upstream."""
        of = _class_of(self.graph.get_node(node_id)["class_type"])
        hidden = of.INPUT_TYPES().get("hidden", {}) if of is not None else {}
        return "DYNPROMPT" in hidden.values() and not getattr(of, "PURGES", False)


def running(graph: Any, node_id: str) -> Prompt:
    """The prompt of a `DynamicPrompt`, with what serves it found on the heap."""
    execution_list = import_module("comfy_execution.graph").ExecutionList
    basic_cache = import_module("comfy_execution.caching").BasicCache
    found = [
        one for one in _core.scan((execution_list, basic_cache)) if getattr(one, "dynprompt", None) is graph
    ]
    executions = [one for one in found if is_a(one, execution_list)]
    if not executions:
        raise RuntimeError("the running prompt was not found in this version of ComfyUI: nothing was purged")
    outputs = executions[0].output_cache
    others = [one for one in found if is_a(one, basic_cache) and one is not outputs]
    return Prompt(graph, executions[0], (outputs, *others), str(node_id))


def _reaches(roots: list[object], targets: list[Any]) -> bool:
    reached = _core.closure((*roots,), libraries=keep.libraries())
    return any(target in reached for target in targets)


def _is_link(value: object) -> bool:
    return bool(import_module("comfy_execution.graph_utils").is_link(value))


def _class_of(class_type: str) -> Any:
    return import_module("nodes").NODE_CLASS_MAPPINGS.get(class_type)


def _display_name(class_type: str) -> str:
    name: str = import_module("nodes").NODE_DISPLAY_NAME_MAPPINGS.get(class_type, class_type)
    return name
