"""ComfyUI's caches: outputs of finished nodes, instances of node classes; what may be let go of them.

All of them keep a dict of entries, by a key that is computed for each node of the prompt, and caches of
their own for the nodes that a node has expanded into (comfy_execution/caching.py). The dicts are read here
as they are: to ask a cache for an entry is to use it, which some of them write down.
"""

from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from fastpurge import _core, keep
from fastpurge.tensors import TensorFacts, facts_of

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


def get(cache: Any, node_id: str) -> Iterator[Any]:
    """What a cache, or one inside it, has for a node."""
    for one in _within(cache):
        keys = getattr(one, "cache_key_set", None)
        key = keys.get_data_key(node_id) if keys is not None else None
        if key is not None and key in one.cache:
            yield one.cache[key]


def entries(caches: Iterable[Any]) -> list[Entry]:
    """All entries of some caches and of those inside them."""
    return [Entry(one, key) for cache in caches for one in _within(cache) for key in one.cache]


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


def holding(
    found: Iterable[Entry], *, kept: _core.IdSet, device_type: str | None, min_bytes: int
) -> list[Entry]:
    """Those entries that hold at least so many bytes, on devices of a type or on all, that are not kept."""
    known = _facts_of_all()
    kept_memory = {facts.extent for tensor, facts in known if tensor in kept}
    unkept = [
        (tensor, facts)
        for tensor, facts in known
        if tensor not in kept
        and (facts.extent is None or facts.extent not in kept_memory)
        and device_type in (None, facts.device.type)
    ]
    return [entry for entry in found if _nbytes_within(entry.value, unkept) >= min_bytes]


def _nbytes_within(value: object, known: list[tuple[torch.Tensor, TensorFacts]]) -> int:
    reached = _core.closure((value,), libraries=keep.libraries())
    return sum({facts.extent or id(one): facts.nbytes for one, facts in known if one in reached}.values())


def _facts_of_all() -> list[tuple[torch.Tensor, TensorFacts]]:
    """Every tensor there is that can say what it is."""
    known = []
    for tensor in _core.scan((torch.Tensor,)):
        with suppress(Exception):
            known.append((tensor, facts_of(tensor)))
    return known


def _within(cache: Any) -> Iterator[Any]:
    """A cache and those inside it; nothing for one that keeps nothing."""
    todo, seen = [cache], set()
    while todo:
        one = todo.pop()
        if id(one) in seen or type(getattr(one, "cache", None)) is not dict:
            continue
        seen.add(id(one))
        yield one
        todo += getattr(one, "subcaches", {}).values()
