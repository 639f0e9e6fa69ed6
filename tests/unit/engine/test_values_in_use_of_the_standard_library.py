"""Values that the standard library works on, or will call, survive a sweep."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.unit.engine.values_in_use import four, sweep, through, total


def made(count: int = 3) -> Iterator[torch.Tensor]:
    """Tensors that only the consumer refers to."""
    for _ in range(count):
        yield four()


def adds_to(totals: list[float]) -> Callable[..., None]:
    """A callback that alone refers to its tensor."""
    value = four()
    return lambda *_, **__: totals.append(total(value))


class Record:
    """A class that an unpickler finds after the first tensor is read."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        sweep()
        return super().find_class(module, name)

    def persistent_load(self, name: Any) -> Any:
        return through(name)


class _UnpicklerInPython(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        sweep()
        return super().find_class(module, name)


class _Pickler(pickle.Pickler):
    def persistent_id(self, one: Any) -> Any:
        if type(one) is torch.Tensor:
            sweep()
        return one.__name__ if type(one) is types.ModuleType else None


class TestSerialization:
    @pytest.mark.parametrize("unpickler", [_Unpickler, _UnpicklerInPython])
    def test_an_unpickler_that_sweeps_for_each_class_reads_everything(self, unpickler: Any) -> None:
        read = unpickler(io.BytesIO(pickle.dumps([four(), Record(), {"a": four()}]))).load()
        assert (total(read[0]), total(read[2]["a"])) == (4, 4)

    def test_a_pickler_that_sweeps_for_each_tensor_writes_everything(self) -> None:
        class Made:
            def __reduce__(self) -> Any:
                return list, (), None, made(2)

        file = io.BytesIO()
        _Pickler(file).dump([Made(), {"a": four()}])
        read = pickle.loads(file.getvalue())
        assert [total(one) for one in (*read[0], read[1]["a"])] == [4] * 3

    def test_a_loader_of_persistent_objects_that_sweeps_reads_everything(self) -> None:
        file = io.BytesIO()
        _Pickler(file).dump([four(), types, four()])
        first, name, last = _Unpickler(io.BytesIO(file.getvalue())).load()
        assert (total(first), name, total(last)) == (4, "types", 4)

    def test_a_copy_is_complete_if_a_method_of_it_sweeps(self) -> None:
        class Copies:
            def __init__(self) -> None:
                self.value = four()

            def __deepcopy__(self, memo: Any) -> Copies:
                sweep()
                return Copies()

        values: Any = copy.deepcopy([four(), Copies(), {"a": four()}, (four(), Copies())])
        first, second, third, (fourth, fifth) = values
        assert total(first) + total(third["a"]) + total(fourth) == 12
        assert type(second) is type(fifth) is Copies

    def test_json_is_written_and_read_beside_a_sweep(self) -> None:
        class Encoder(json.JSONEncoder):
            def default(self, o: Any) -> Any:
                return through(o).tolist()

        expected = '{"a": [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]}'
        assert json.dumps({"a": [four(), four()]}, cls=Encoder) == expected
        parts = json.JSONEncoder(default=lambda one: one.tolist()).iterencode({"a": [four(), four()]})
        begun = next(parts)
        sweep()
        assert begun + "".join(parts) == expected
        read = json.loads('[{"a": 1}, {"a": 2}, {"a": 3}]', object_hook=lambda _: through(four()))
        assert [total(one) for one in read] == [4] * 3


class TestIterators:
    """Iterators in C that have begun."""

    @pytest.mark.parametrize(
        ("make", "rest"),
        [
            (lambda: itertools.pairwise(made(4)), 3),
            (lambda: itertools.accumulate(made(4)), 4),
            (lambda: itertools.zip_longest(made(), [1], fillvalue=four()), 3),
            (lambda: itertools.product([four()], [four(), four(), four()]), 3),
            (lambda: itertools.permutations([*made()], 1), 3),
            (lambda: reversed([*made()]), 3),
        ],
        ids="pairwise accumulate zip_longest product permutations reversed".split(),
    )
    def test_an_iterator_that_has_begun_gives_the_rest(self, make: Any, rest: int) -> None:
        iterator = make()
        next(iterator)
        sweep()
        values = [one if isinstance(one, tuple) else (one,) for one in iterator]
        assert len(values) == rest - 1
        assert all(total(value) % 4 == 0 for one in values for value in one)

    def test_both_parts_of_a_tee_give_the_same(self) -> None:
        first, second = itertools.tee(made())
        next(first)
        sweep()
        assert [total(one) for one in second] == [4] * 3
        assert [total(one) for one in first] == [4] * 2

    def test_a_group_that_has_begun_gives_the_rest(self) -> None:
        groups = itertools.groupby((torch.ones(at // 2 + 1) for at in range(4)), key=len)
        _, group = next(groups)
        sweep()
        assert [total(one) for one in group] == [1, 1]
        assert [[total(one) for one in group] for _, group in groups] == [[2, 2]]
