"""A prompt: the inputs of its pending nodes, and the caches that store finished outputs.

ComfyUI has one `ExecutionList` for a running prompt. Newer ones store the inputs of a pending node in
``execution_cache[to][from]``; older ones read the output cache when the node runs. A node can also read
outputs that it has no fixed link to: through a lazy input, or by expanding into a sub-graph that links to
nodes upstream.

Between prompts there is no `ExecutionList`. The caches outlive the prompt: the `PromptExecutor` of the prompt
worker thread owns them.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import AsyncGeneratorType, CoroutineType, FrameType, ModuleType
from typing import Any, TypeVar

from fastpurge import _core
from fastpurge.comfy.comfyui import caches
from fastpurge.python_facts.imported_modules import namespace
from fastpurge.python_facts.library_folders import libraries
from fastpurge.python_facts.object_types import is_a
from fastpurge.tombstones import PurgedModule, PurgedTensor

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The running prompt, seen from its current node; or the last prompt, if none is running.

    Attributes:
        graph: its `DynamicPrompt`.
        execution: its `ExecutionList`; None between prompts.
        output_caches: the cache of node outputs, and its sub-caches.
        other_caches: all its other caches, such as that of node instances.
        caches_and_executions: all caches in the process, and the `ExecutionList` of every other running
            prompt: a node can run a prompt of its own.
        pending_results: results that only local variables of the executor refer to: of sub-graphs and of
            async nodes.
        executor_state: other attributes of executors and prompt queues, used when the prompt ends.
        modules_and_coroutines: all modules, also those that packs leave out of `sys.modules`, and suspended
            coroutines and async generators.
        node_id: the current node; None between prompts.
        label: the name of a purge that no node makes; None in a node.

    """

    graph: Any
    execution: Any | None
    output_caches: tuple[Any, ...]
    other_caches: tuple[Any, ...]
    caches_and_executions: tuple[Any, ...]
    pending_results: tuple[object, ...]
    executor_state: tuple[object, ...]
    modules_and_coroutines: tuple[Any, ...]
    node_id: str | None
    label: str | None = None

    @property
    def caches(self) -> tuple[Any, ...]:
        """All caches of this prompt."""
        return (*self.output_caches, *self.other_caches)

    @property
    def title(self) -> str:
        """The name of the purge: the label, or else title and number of the current node."""
        return self.label if self.label is not None else self.title_of(self.node_id)

    def title_of(self, node_id: str | None) -> str:
        """The title and number of a node, as shown on the canvas."""
        if node_id is None or not self.graph.has_node(node_id):
            return "a node of an earlier prompt"
        shown = self.graph.get_display_node_id(node_id)
        node = self.graph.get_node(shown)
        title = (node.get("_meta") or {}).get("title") or _display_name(node["class_type"])
        return f"{title} (node {shown})"

    def pending(self) -> list[str]:
        """The nodes still to run, without the current one."""
        if self.execution is None:
            return []
        return [node for node in self.execution.pendingNodes if node != self.node_id]

    def pending_inputs(self) -> list[object]:
        """All inputs of the pending nodes, and the instances of their classes."""
        return [*self.pending_results, *self.inputs_of(self.pending())]

    def inputs_of(self, nodes: list[str]) -> list[object]:
        """All inputs of the given nodes, and the instances of their classes."""
        reads = getattr(self.execution, "execution_cache", {})
        return [
            *(self.graph.get_node(node)["inputs"] for node in nodes),
            *(entry for node in nodes for entry in reads.get(node, {}).values()),
            *self._upstream(nodes),
            *(found for node in nodes for found in caches.values_of_node(self.other_caches, node)),
        ]

    def wired_entries(self) -> list[object]:
        """The cache entries of the nodes that the current node links to, with all of their outputs."""
        return [
            entry
            for source in self._sources(self.node_id)
            for entry in caches.values_of_node(self.output_caches, source)
        ]

    def find_failing_nodes(self) -> list[str]:
        """The pending nodes that will read a tombstone. Their inputs are evicted when they are read."""
        tombstones = (*_core.scan((PurgedTensor, PurgedModule)),)
        pending = self.pending() if tombstones else []
        nodes = _reaching(tombstones, pending, [self.inputs_of([node]) for node in pending])
        reads = getattr(self.execution, "execution_cache", {})
        slots = [(node, source) for node in nodes for source in reads.get(node, {})]
        for node, source in _reaching(tombstones, slots, [reads[to][of] for to, of in slots]):
            reads[node][source] = caches.evicted_when_read(reads[node][source], self.caches)
        return nodes

    def _upstream(self, nodes: list[str]) -> Iterator[object]:
        """Cached outputs that nodes link to, also through nodes without one.

        For a node that may expand, all cached outputs upstream.
        """
        deep = {node for node in nodes if self._may_expand(node)}
        for through, start in ((False, [node for node in nodes if node not in deep]), (True, [*deep])):
            todo, seen = [*start], set(start)
            while todo:
                for source in self._sources(todo.pop()):
                    if source not in seen:
                        seen.add(source)
                        entries = [*caches.values_of_node(self.output_caches, source)]
                        yield from entries
                        if through or not entries:
                            todo.append(source)

    def _sources(self, node_id: str | None) -> Iterator[str]:
        """The nodes that a node links to, lazy inputs included."""
        if node_id is not None and self.graph.has_node(node_id):
            for value in self.graph.get_node(node_id)["inputs"].values():
                if _is_link(value):
                    yield value[0]

    def _may_expand(self, node_id: str) -> bool:
        """Whether a node takes the graph as an input, as nodes do that expand into copies of others."""
        of = self._class_of(node_id)
        try:
            hidden = of.INPUT_TYPES().get("hidden", {}) if of is not None else {}
            # Nodes of the V3 API have tuples as values.
            takes_graph = any("DYNPROMPT" in one for one in hidden.values())
            return takes_graph and not getattr(of, "NEVER_EXPANDS", False)
        except Exception:  # noqa: BLE001 - code of a custom node; ComfyUI reports the error when it runs the node
            return True

    def _class_of(self, node_id: str) -> Any:
        return import_module("nodes").NODE_CLASS_MAPPINGS.get(self.graph.get_node(node_id)["class_type"])


def find_running(graph: Any, node_id: str) -> Prompt:
    """The running prompt of a `DynamicPrompt`; its caches are found on the heap.

    Raises:
        RuntimeError: there is none: this version of ComfyUI is not supported.

    """
    heap = _find_comfyui_objects()
    ours = [one for one in heap.caches_and_executions if getattr(one, "dynprompt", None) is graph]
    execution = next((one for one in ours if is_a(one, _execution_list())), None)
    if execution is None:
        raise unsupported_comfyui("cannot find the running prompt")
    outputs = (*caches.with_subcaches(execution.output_cache),)
    return Prompt(
        graph=graph,
        execution=execution,
        output_caches=outputs,
        other_caches=_not_in(outputs, (one for one in ours if is_a(one, _basic_cache()))),
        caches_and_executions=(*(one for one in heap.caches_and_executions if one is not execution),),
        pending_results=heap.pending_results,
        executor_state=heap.executor_state,
        modules_and_coroutines=heap.modules_and_coroutines,
        node_id=str(node_id),
    )


def last_prompt(label: str) -> Prompt:
    """The last prompt of this thread, which must be the prompt worker, between prompts.

    Raises:
        RuntimeError: this version of ComfyUI is not supported.

    """
    executor = _executor()
    heap = _find_comfyui_objects()
    outputs = (*caches.with_subcaches(executor.caches.outputs),)
    served = (one for cache in executor.caches.all for one in caches.with_subcaches(cache))
    # A cache has no graph before the first prompt, nor has one that stores nothing.
    graph = getattr(executor.caches.outputs, "dynprompt", None)
    return Prompt(
        graph=graph if graph is not None else import_module("comfy_execution.graph").DynamicPrompt({}),
        execution=None,
        output_caches=outputs,
        other_caches=_not_in(outputs, served),
        caches_and_executions=heap.caches_and_executions,
        pending_results=heap.pending_results,
        executor_state=heap.executor_state,
        modules_and_coroutines=heap.modules_and_coroutines,
        node_id=None,
        label=label,
    )


def unsupported_comfyui(what: str) -> RuntimeError:
    """The error for a version of ComfyUI with unknown internals."""
    return RuntimeError(f"{what} in this version of ComfyUI, which is not supported: nothing was purged")


def _execution_list() -> Any:
    return import_module("comfy_execution.graph").ExecutionList


def _basic_cache() -> Any:
    return import_module("comfy_execution.caching").BasicCache


@dataclass(frozen=True, slots=True)
class _ComfyObjects:
    """Objects of ComfyUI and code found on the heap; the attributes are those of `Prompt`."""

    caches_and_executions: tuple[Any, ...]
    pending_results: tuple[object, ...]
    executor_state: tuple[object, ...]
    modules_and_coroutines: tuple[Any, ...]


def _find_comfyui_objects() -> _ComfyObjects:
    state_types = (_execution_list(), _basic_cache())
    executor_types = _execution_classes("PromptExecutor", "PromptQueue")
    code = (ModuleType, CoroutineType, AsyncGeneratorType)
    found = _core.scan((*state_types, *executor_types, *code))
    executors = [one for one in found if is_a(one, *executor_types)]
    return _ComfyObjects(
        caches_and_executions=(*(one for one in found if is_a(one, *state_types)),),
        pending_results=(*_pending_results(one.cr_frame for one in found if is_a(one, CoroutineType)),),
        executor_state=(*(each for one in executors for each in _attributes_without_server(one)),),
        modules_and_coroutines=(*(one for one in found if is_a(one, *code)),),
    )


def _execution_classes(*names: str) -> tuple[type, ...]:
    """Classes of ``execution.py``."""
    found = (getattr(sys.modules.get("execution"), name, None) for name in names)
    return (*(one for one in found if isinstance(one, type)),)


# An attribute of executors and queues, and two that `between_prompts.py` sets on a queue.
_ATTRIBUTES_LEADING_TO_SERVER = ("server", "get_flags", "fastpurge_hook")


def _attributes_without_server(one: Any) -> list[object]:
    """Values of the attributes of an executor or a queue, without the server, which reaches everything.

    Executors of ComfyUI 0.29 and newer have a `PromptModelTracker` (comfy/model_patcher.py), which writes to
    each model of the prompt when the prompt ends. If one were stripped, the prompt worker thread would end.
    """
    return [value for name, value in vars(one).copy().items() if name not in _ATTRIBUTES_LEADING_TO_SERVER]


def _not_in(known: tuple[Any, ...], found: Iterable[Any]) -> tuple[Any, ...]:
    """The objects found that are not among the known ones, by identity."""
    return (*(one for one in found if all(one is not each for each in known)),)


def _executor() -> Any:
    """The `PromptExecutor` of this thread: a local variable of `prompt_worker` in main.py."""
    prompt_executor = import_module("execution").PromptExecutor
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        for value in frame.f_locals.values():
            if is_a(value, prompt_executor):
                return value
        frame = frame.f_back
    raise unsupported_comfyui("cannot find the prompt executor")


def _pending_results(suspended: Iterable[FrameType | None]) -> Iterator[object]:
    """Results by node in dicts that only local variables of ``execution.py`` refer to.

    These are constants that an expanding node returns besides its sub-graph, and arguments and results of
    async nodes.
    """
    executor = sys.modules.get("execution")
    for frame in (*suspended, *frames_of_all_threads()):
        if executor is not None and frame is not None and frame.f_globals is namespace(executor):
            yield from (value for value in frame.f_locals.values() if type(value) is dict)


def frames_of_all_threads() -> Iterator[FrameType]:
    """All frames of all threads, each stack from the innermost frame outwards."""
    for top in sys._current_frames().values():
        frame: FrameType | None = top
        while frame is not None:
            yield frame
            frame = frame.f_back


def _reaching(tombstones: tuple[Any, ...], named: list[_T], objects: list[object]) -> list[_T]:
    """The names of those objects that reach a tombstone."""
    reached = _core.reachable_targets((*objects,), tombstones, libraries=libraries()) if objects else []
    return [name for name, hits in zip(named, reached, strict=True) if hits]


def _is_link(value: object) -> bool:
    return bool(import_module("comfy_execution.graph_utils").is_link(value))


def _display_name(class_type: str) -> str:
    name: str = import_module("nodes").NODE_DISPLAY_NAME_MAPPINGS.get(class_type, class_type)
    return name
