"""ComfyUI's caches: outputs of finished nodes, instances of node classes; what may be let go of them.

All of them keep a dict of entries, by a key that is computed for each node of the prompt, and caches of
their own for the nodes that a node has expanded into (comfy_execution/caching.py). The dicts are read here
as they are: to ask a cache for an entry is to use it, which some of them write down.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastpurge import _core
from fastpurge.comfy.comfyui.unkept_tensors import Unkept, nbytes_of
from fastpurge.python_facts.library_folders import libraries

# What the caches with a policy remember of an entry besides its value.
_BOOKS = ("used_generation", "children", "timestamps")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of one cache."""

    cache: Any
    key: Hashable

    @property
    def value(self) -> Any:
        """What is cached."""
        return self.cache.cache[self.key]

    @property
    def node_id(self) -> str | None:
        """The node of this prompt that it belongs to, if there is one."""
        return next((node for node, key in self.cache.cache_key_set.keys.items() if key == self.key), None)

    def evict(self) -> None:
        """Take it out of its cache: what it stands for is computed again when it is needed."""
        del self.cache.cache[self.key]
        for name in _BOOKS:
            book = getattr(self.cache, name, None)
            if type(book) is dict:
                book.pop(self.key, None)


def get(caches: Iterable[Any], node_id: str) -> Iterator[Any]:
    """What caches have for a node."""
    for one in caches:
        keys = getattr(one, "cache_key_set", None)
        key = keys.get_data_key(node_id) if keys is not None else None
        if key is not None and key in _dict_of(one):
            yield one.cache[key]


def known_to(cache: Any) -> Iterator[str]:
    """The nodes that a cache has a key for; none for one that keeps nothing, or has not seen a prompt."""
    yield from getattr(getattr(cache, "cache_key_set", None), "keys", ())


def entries(caches: Iterable[Any]) -> list[Entry]:
    """All entries of some caches."""
    return [Entry(one, key) for one in caches for key in _dict_of(one)]


def evicted_when_read(entry: Any, caches: Iterable[Any]) -> Any:
    """The same entry, that goes out of the caches whenever a node takes its outputs.

    A node that reads what was handed to it has it written back into the output cache first
    (`ExecutionList.get_cache`): there the next prompt would find a tombstone.
    """
    outputs = entry.outputs

    class Broken(type(entry)):  # type: ignore[misc]
        __slots__ = ()

        @property
        def outputs(self) -> Any:
            for found in entries(caches):
                if found.value is self:
                    found.evict()
            return outputs

    return Broken(*entry)


def holding(found: list[Entry], unkept: list[Unkept], *, min_bytes: int) -> list[tuple[Entry, list[Unkept]]]:
    """Those entries that hold at least so many bytes of what is not kept, each with what it holds of it."""
    if nbytes_of(unkept) < min_bytes:
        return []
    values, tensors = (*(entry.value for entry in found),), (*(one.tensor for one in unkept),)
    reached = _core.reachable_targets(values, tensors, libraries=libraries())
    held = [(entry, [unkept[at] for at in hits]) for entry, hits in zip(found, reached, strict=True)]
    return [(entry, tensors) for entry, tensors in held if nbytes_of(tensors) >= min_bytes]


def within(cache: Any) -> Iterator[Any]:
    """A cache and those inside it."""
    todo, seen = [cache], set()
    while todo:
        one = todo.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += getattr(one, "subcaches", {}).values()


def _dict_of(cache: Any) -> dict[Hashable, Any]:
    """The entries of a cache; none for one that keeps nothing."""
    of = getattr(cache, "cache", None)
    return of if type(of) is dict else {}
