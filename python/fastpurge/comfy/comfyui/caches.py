"""ComfyUI's caches, of node outputs and of node instances: read them, and evict entries.

Each cache has a dict of entries, keyed by a key that it computes for each node of the prompt, and sub-caches
for the nodes that a node expanded into (comfy_execution/caching.py). This module reads the dicts directly,
because some caches record a call of their `get` as a use of the entry.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastpurge import _core
from fastpurge.comfy.comfyui.unkept_tensors import Unkept, nbytes_of
from fastpurge.python_facts.library_folders import libraries

# Dicts in which caches with an eviction policy store further data about an entry.
_POLICY_DICTS = ("used_generation", "children", "timestamps")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of one cache."""

    cache: Any
    key: Hashable

    @property
    def value(self) -> Any:
        """The cached value."""
        return self.cache.cache[self.key]

    @property
    def node_id(self) -> str | None:
        """The node of the current prompt that has this key; None if there is none."""
        return next((node for node, key in self.cache.cache_key_set.keys.items() if key == self.key), None)

    def evict(self) -> None:
        """Remove the entry from its cache. ComfyUI runs the node again when it needs the value."""
        del self.cache.cache[self.key]
        for name in _POLICY_DICTS:
            per_key = getattr(self.cache, name, None)
            if type(per_key) is dict:
                per_key.pop(self.key, None)


def values_of_node(caches: Iterable[Any], node_id: str) -> Iterator[Any]:
    """The cached values of a node."""
    for one in caches:
        keys = getattr(one, "cache_key_set", None)
        key = keys.get_data_key(node_id) if keys is not None else None
        if key is not None and key in _entries_dict(one):
            yield one.cache[key]


def entries(caches: Iterable[Any]) -> list[Entry]:
    """All entries of the given caches."""
    return [Entry(one, key) for one in caches for key in _entries_dict(one)]


def evicted_when_read(entry: Any, caches: Iterable[Any]) -> Any:
    """A copy of the entry that removes itself from the caches when its outputs are read.

    Before a node reads its input, `ExecutionList.get_cache` writes the entry back into the output cache. The
    next prompt would find a tombstone there.
    """
    outputs = entry.outputs

    class EvictedOnRead(type(entry)):  # type: ignore[misc]
        __slots__ = ()

        @property
        def outputs(self) -> Any:
            for found in entries(caches):
                if found.value is self:
                    found.evict()
            return outputs

    return EvictedOnRead(*entry)


def entries_reaching(
    found: list[Entry], unkept: list[Unkept], *, min_bytes: int
) -> list[tuple[Entry, list[Unkept]]]:
    """The entries that reach at least ``min_bytes`` of unkept tensors, each with those tensors."""
    if nbytes_of(unkept) < min_bytes:
        return []
    values, tensors = (*(entry.value for entry in found),), (*(one.tensor for one in unkept),)
    reached = _core.reachable_targets(values, tensors, libraries=libraries())
    found_with_tensors = [
        (entry, [unkept[at] for at in hits]) for entry, hits in zip(found, reached, strict=True)
    ]
    return [(entry, tensors) for entry, tensors in found_with_tensors if nbytes_of(tensors) >= min_bytes]


def with_subcaches(cache: Any) -> Iterator[Any]:
    """A cache and all of its sub-caches, recursively."""
    todo, seen = [cache], set()
    while todo:
        one = todo.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += getattr(one, "subcaches", {}).values()


def _entries_dict(cache: Any) -> dict[Hashable, Any]:
    """The entries of a cache; empty for a cache that stores nothing."""
    stored = getattr(cache, "cache", None)
    return stored if type(stored) is dict else {}
