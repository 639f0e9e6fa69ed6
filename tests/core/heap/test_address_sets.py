"""`IdSet` compares objects by identity only."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from fastpurge._core import IdSet


class Incomparable:
    """Raises when it is compared or hashed."""

    def __eq__(self, other: object) -> NoReturn:
        raise AssertionError("asked")

    def __hash__(self) -> NoReturn:
        raise AssertionError("asked")


def test_membership_is_by_identity() -> None:
    a, b = [1], [1]
    ids = IdSet([a])
    assert a in ids
    assert b not in ids


def test_no_object_is_compared_or_hashed() -> None:
    incomparable = Incomparable()
    ids = IdSet()
    ids.add(incomparable)
    ids.update([incomparable, incomparable])
    assert incomparable in ids
    assert len(ids) == 1
    ids.discard(incomparable)
    assert incomparable not in ids
    assert len(ids) == 0


def test_update_takes_any_iterable_and_discard_what_is_not_there() -> None:
    objects = [object() for _ in range(1000)]
    ids = IdSet(iter(objects))
    ids.update(x for x in objects[:10])
    ids.discard(object())
    assert len(ids) == 1000
    assert all(x in ids for x in objects)


def test_an_iterator_may_use_the_set_it_fills() -> None:
    ids = IdSet()
    objects = [object(), object()]

    def items() -> Any:
        for x in objects:
            yield x
            assert x in ids

    ids.update(items())
    assert len(ids) == 2


def test_what_is_not_iterable_is_refused() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        IdSet(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not iterable"):
        IdSet().update(None)  # type: ignore[arg-type]


def test_a_set_has_no_references() -> None:
    import weakref

    class Thing:
        pass

    thing = Thing()
    ids = IdSet([thing])
    ref = weakref.ref(thing)
    del thing
    assert ref() is None
    assert len(ids) == 1


def test_repr_gives_the_number_of_objects() -> None:
    assert repr(IdSet([1, 2])) == "<IdSet of 2 objects>"
