"""A prompt: what its nodes still to run will read, and where finished outputs are kept.

ComfyUI has one `ExecutionList` for a running prompt. Newer ones hold what a pending node will read in
``execution_cache[to][from]``; older ones look it up in the output cache when the node's turn comes. A node
can also come to need what it has no firm link to yet: by a lazy input, or by expanding into a sub-graph that
links to nodes upstream.

Between prompts there is none. The caches outlive the prompt that filled them, in the `PromptExecutor` of the
thread that runs prompts.
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
    """A prompt that runs, seen from the node that runs now; or the last one, when none does.

    Attributes:
        graph: its `DynamicPrompt`.
        execution: its `ExecutionList`; None if it is over.
        outputs: the caches of finished outputs, the first and those inside it.
        others: every other cache that serves it: of instances of node classes, above all.
        books: every cache, and the execution of every other prompt that runs: a node can run one of its own.
        at_hand: what its executor has at hand for later: results of sub-graphs and of async nodes.
        in_use: what executors and queues of prompts hold besides: they go on with it when the prompt ends.
        code: all modules, of which packs leave some out of `sys.modules`, and functions that wait.
        node_id: the node that runs now; None if it is over.
        label: what purges it; None if that is the node that runs now.

    """

    graph: Any
    execution: Any | None
    outputs: tuple[Any, ...]
    others: tuple[Any, ...]
    books: tuple[Any, ...]
    at_hand: tuple[object, ...]
    in_use: tuple[object, ...]
    code: tuple[Any, ...]
    node_id: str | None
    label: str | None = None

    @property
    def caches(self) -> tuple[Any, ...]:
        """Every cache that serves it."""
        return (*self.outputs, *self.others)

    @property
    def title(self) -> str:
        """What purges: the title and number of the node that runs, as the user sees them, or the label."""
        return self.label if self.label is not None else self.title_of(self.node_id)

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
        if self.execution is None:
            return []
        return [node for node in self.execution.pendingNodes if node != self.node_id]

    def reads(self) -> list[object]:
        """What the nodes still to run will read, and the instances of their classes."""
        return [*self.at_hand, *self.reads_of(self.pending())]

    def reads_of(self, nodes: list[str]) -> list[object]:
        """What nodes will read when their turn comes, and the instances of their classes."""
        handed = getattr(self.execution, "execution_cache", {})
        return [
            *(self.graph.get_node(node)["inputs"] for node in nodes),
            *(entry for node in nodes for entry in handed.get(node, {}).values()),
            *self._upstream(nodes),
            *(found for node in nodes for found in caches.get(self.others, node)),
        ]

    def wired(self) -> list[object]:
        """The cache entries that feed the node that runs now, with those of their outputs that do not."""
        return [entry for source in self._sources(self.node_id) for entry in caches.get(self.outputs, source)]

    def broken(self) -> list[str]:
        """The nodes still to run that will meet a tombstone. It is seen to that no cache gets hold of one."""
        tombstones = (*_core.scan((PurgedTensor, PurgedModule)),)
        pending = self.pending() if tombstones else []
        nodes = _those_that_lead_to(tombstones, pending, [self.reads_of([node]) for node in pending])
        handed = getattr(self.execution, "execution_cache", {})
        slots = [(node, source) for node in nodes for source in handed.get(node, {})]
        for node, source in _those_that_lead_to(tombstones, slots, [handed[to][of] for to, of in slots]):
            handed[node][source] = caches.evicted_when_read(handed[node][source], self.caches)
        return nodes

    def _upstream(self, nodes: list[str]) -> Iterator[object]:
        """Cached outputs that nodes link to, through nodes without; all upstream of one that may expand."""
        deep = {node for node in nodes if self._may_expand(node)}
        for through, start in ((False, [node for node in nodes if node not in deep]), (True, [*deep])):
            todo, seen = [*start], set(start)
            while todo:
                for source in self._sources(todo.pop()):
                    if source not in seen:
                        seen.add(source)
                        entries = [*caches.get(self.outputs, source)]
                        yield from entries
                        if through or not entries:
                            todo.append(source)

    def _sources(self, node_id: str | None) -> Iterator[str]:
        """The nodes that a node links to, whether it needs them yet or not."""
        if node_id is not None and self.graph.has_node(node_id):
            for value in self.graph.get_node(node_id)["inputs"].values():
                if _is_link(value):
                    yield value[0]

    def _may_expand(self, node_id: str) -> bool:
        """Whether a node asks for the graph, as those do that expand into copies of what is upstream."""
        of = self._class_of(node_id)
        try:
            hidden = of.INPUT_TYPES().get("hidden", {}) if of is not None else {}
            # Nodes of the newer API have tuples there.
            return any("DYNPROMPT" in one for one in hidden.values()) and not getattr(of, "PURGES", False)
        except Exception:  # noqa: BLE001 - code of a custom node; ComfyUI will tell of it when its turn comes
            return True

    def _class_of(self, node_id: str) -> Any:
        return import_module("nodes").NODE_CLASS_MAPPINGS.get(self.graph.get_node(node_id)["class_type"])


def running(graph: Any, node_id: str) -> Prompt:
    """The prompt of a `DynamicPrompt`, with what serves it found on the heap."""
    heap = _on_the_heap()
    ours = [one for one in heap.books if getattr(one, "dynprompt", None) is graph]
    execution = next((one for one in ours if is_a(one, _execution_list())), None)
    if execution is None:
        raise not_understood("the running prompt was not found")
    outputs = (*caches.within(execution.output_cache),)
    return Prompt(
        graph=graph,
        execution=execution,
        outputs=outputs,
        others=_without(outputs, (one for one in ours if is_a(one, _basic_cache()))),
        books=(*(one for one in heap.books if one is not execution),),
        at_hand=heap.at_hand,
        in_use=heap.in_use,
        code=heap.code,
        node_id=str(node_id),
    )


def over(label: str) -> Prompt:
    """The last prompt of this thread, which has to be the one that runs prompts, and to run none now."""
    executor = _executor()
    heap = _on_the_heap()
    outputs = (*caches.within(executor.caches.outputs),)
    served = (one for cache in executor.caches.all for one in caches.within(cache))
    # A cache that has not seen a prompt yet has no graph, nor has one that keeps nothing.
    graph = getattr(executor.caches.outputs, "dynprompt", None)
    return Prompt(
        graph=graph if graph is not None else import_module("comfy_execution.graph").DynamicPrompt({}),
        execution=None,
        outputs=outputs,
        others=_without(outputs, served),
        books=heap.books,
        at_hand=heap.at_hand,
        in_use=heap.in_use,
        code=heap.code,
        node_id=None,
        label=label,
    )


def not_understood(what: str) -> RuntimeError:
    """The error of a ComfyUI that is made otherwise than those that are known."""
    return RuntimeError(f"{what} in this version of ComfyUI: nothing was purged")


def _execution_list() -> Any:
    return import_module("comfy_execution.graph").ExecutionList


def _basic_cache() -> Any:
    return import_module("comfy_execution.caching").BasicCache


@dataclass(frozen=True, slots=True)
class _Heap:
    """What there is of ComfyUI, and of code, wherever it is; the attributes are those of a `Prompt`."""

    books: tuple[Any, ...]
    at_hand: tuple[object, ...]
    in_use: tuple[object, ...]
    code: tuple[Any, ...]


def _on_the_heap() -> _Heap:
    kept_by = (_execution_list(), _basic_cache())
    going_on = _of_execution("PromptExecutor", "PromptQueue")
    code = (ModuleType, CoroutineType, AsyncGeneratorType)
    found = _core.scan((*kept_by, *going_on, *code))
    return _Heap(
        books=(*(one for one in found if is_a(one, *kept_by)),),
        at_hand=(*_at_hand(one.cr_frame for one in found if is_a(one, CoroutineType)),),
        in_use=(*(each for one in found if is_a(one, *going_on) for each in _besides_the_server(one)),),
        code=(*(one for one in found if is_a(one, *code)),),
    )


def _of_execution(*names: str) -> tuple[type, ...]:
    """Classes of ``execution.py``."""
    found = (getattr(sys.modules.get("execution"), name, None) for name in names)
    return (*(one for one in found if isinstance(one, type)),)


# The attribute of executors and queues, and what `between_prompts.py` gives a queue.
_LEADING_TO_THE_SERVER = ("server", "get_flags", "fastpurge_gaps")


def _besides_the_server(one: Any) -> list[object]:
    """What the attributes of an executor or a queue are, without the server, which leads to everything.

    Of newer executors one keeps the models of the running prompt (`PromptModelTracker` in
    comfy/model_patcher.py): when the prompt ends it writes to each. It has to find them whole, or the thread
    that runs prompts ends.
    """
    return [value for name, value in vars(one).copy().items() if name not in _LEADING_TO_THE_SERVER]


def _without(known: tuple[Any, ...], found: Iterable[Any]) -> tuple[Any, ...]:
    """Those that are not known, by identity."""
    return (*(one for one in found if all(one is not each for each in known)),)


def _executor() -> Any:
    """The `PromptExecutor` of this thread: a variable of the function that takes prompts from the queue."""
    prompt_executor = import_module("execution").PromptExecutor
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        for value in frame.f_locals.values():
            if is_a(value, prompt_executor):
                return value
        frame = frame.f_back
    raise not_understood("the executor of prompts was not found")


def _at_hand(suspended: Iterable[FrameType | None]) -> Iterator[object]:
    """Dicts of the functions that execute prompts: results by node, which nothing else holds.

    They are locals in ``execution.py``: constants that an expanding node gives back beside its sub-graph,
    and what async nodes have given back or are at work with.
    """
    executor = sys.modules.get("execution")
    for frame in (*suspended, *_running()):
        if executor is not None and frame is not None and frame.f_globals is namespace(executor):
            yield from (value for value in frame.f_locals.values() if type(value) is dict)


def _running() -> Iterator[FrameType]:
    """The frames of all threads."""
    for top in sys._current_frames().values():
        frame: FrameType | None = top
        while frame is not None:
            yield frame
            frame = frame.f_back


def _those_that_lead_to(tombstones: tuple[Any, ...], named: list[_T], held: list[object]) -> list[_T]:
    reached = _core.reachable_targets((*held,), tombstones, libraries=libraries()) if held else []
    return [name for name, hits in zip(named, reached, strict=True) if hits]


def _is_link(value: object) -> bool:
    return bool(import_module("comfy_execution.graph_utils").is_link(value))


def _display_name(class_type: str) -> str:
    name: str = import_module("nodes").NODE_DISPLAY_NAME_MAPPINGS.get(class_type, class_type)
    return name
