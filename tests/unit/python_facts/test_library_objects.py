"""A library object in running code is in use, with everything reachable from it."""

from __future__ import annotations

import collections
import functools
import itertools
import threading
import time
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import fastpurge
import numpy as np
import pytest
import torch
from fastpurge import Guard, is_purged


class Record:
    """A class of the program."""

    def __init__(self) -> None:
        self.value = torch.ones(4)


def _array(elements: list[Any]) -> Any:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _chain_map() -> Any:
    return collections.ChainMap({"x": torch.ones(4)}, {"y": torch.ones(4)})


OWNERS: dict[str, tuple[Callable[[], Any], Callable[[Any], torch.Tensor]]] = {
    "UserDict": (lambda: collections.UserDict(x=torch.ones(4)), lambda referent: referent["x"]),
    "UserDict of records": (lambda: collections.UserDict(x=Record()), lambda referent: referent["x"].value),
    "UserDict of an array of records": (
        lambda: collections.UserDict(x=_array([Record()])),
        lambda referent: referent["x"][0].value,
    ),
    "UserDict of an array of arrays of records": (
        lambda: collections.UserDict(x=_array([_array([Record()]), None])),
        lambda referent: referent["x"][0][0].value,
    ),
    "UserDict of an element of a structured array": (
        lambda: collections.UserDict(x=np.array([(Record(), 1)], dtype=[("record", object), ("n", int)])[0]),
        lambda referent: referent["x"]["record"].value,
    ),
    "UserList": (lambda: collections.UserList([torch.ones(4)]), lambda referent: referent[0]),
    "ChainMap": (_chain_map, lambda referent: referent["y"]),
    "SimpleNamespace": (lambda: types.SimpleNamespace(x=torch.ones(4)), lambda referent: referent.x),
    "mappingproxy": (lambda: types.MappingProxyType({"x": torch.ones(4)}), lambda referent: referent["x"]),
    "defaultdict": (
        lambda: collections.defaultdict(list, x=[torch.ones(4)]),
        lambda referent: referent["x"][0],
    ),
    "partial": (lambda: functools.partial(torch.add, torch.ones(4)), lambda referent: referent(0)),
    "tee": (lambda: itertools.tee(iter([torch.ones(4)]))[0], next),
    "Mock": (lambda: mock.Mock(x=torch.ones(4)), lambda referent: referent.x),
    "Normal": (
        lambda: torch.distributions.Normal(torch.zeros(4), 1e-9),
        lambda referent: referent.sample() + 1,
    ),
    "MixtureSameFamily": (
        lambda: torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(2)),
            torch.distributions.Normal(torch.ones(2), torch.full((2,), 1e-9)),
        ),
        lambda referent: referent.sample((4,)),
    ),
    "WeightedRandomSampler": (
        lambda: torch.utils.data.WeightedRandomSampler([0.0, 1.0], 4),
        lambda referent: torch.tensor([*referent]),
    ),
    "SubsetRandomSampler": (
        lambda: torch.utils.data.SubsetRandomSampler(torch.ones(4, dtype=torch.int)),  # type: ignore[arg-type]
        lambda referent: torch.stack([*referent]),
    ),
    "PackedSequence": (
        lambda: torch.nn.utils.rnn.pack_sequence([torch.ones(4)]),
        lambda referent: referent.data,
    ),
}


@pytest.mark.parametrize("name", OWNERS)
def test_a_library_object_in_a_local_keeps_its_contents(name: str) -> None:
    make, read = OWNERS[name]
    referent = make()
    fastpurge.sweep(keep=())
    assert read(referent).sum().item() == pytest.approx(4)


@pytest.mark.parametrize("name", OWNERS)
def test_a_library_object_in_a_local_of_another_thread_keeps_its_contents(name: str) -> None:
    make, read = OWNERS[name]
    ready, swept = threading.Event(), threading.Event()
    sums: list[float] = []

    def work() -> None:
        referent = make()
        ready.set()
        swept.wait()
        sums.append(read(referent).sum().item())

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    fastpurge.sweep(keep=())
    swept.set()
    thread.join()
    assert sums == [pytest.approx(4)]


@pytest.mark.parametrize("name", OWNERS)
def test_a_library_object_on_the_stack_keeps_its_contents(name: str) -> None:
    make, read = OWNERS[name]

    def sweep(referent: Any) -> float:
        fastpurge.sweep(keep=())
        return read(referent).sum().item()

    assert [make(), sweep(make())][1] == pytest.approx(4)


@pytest.mark.parametrize("name", sorted(OWNERS))
def test_a_forgotten_library_object_keeps_nothing(name: str, program: Any) -> None:
    program.referent = torch.ones(7)
    program.forgotten = collections.UserDict(x=program.referent)
    fastpurge.sweep(keep=())
    assert is_purged(program.referent)


def test_an_object_of_the_program_is_not_traversed(program: Any) -> None:
    record = Record()
    fastpurge.sweep(keep=())
    assert is_purged(record.value)


def test_a_loop_over_a_progress_bar_continues() -> None:
    tqdm = pytest.importorskip("tqdm")
    batches = [torch.ones(4) for _ in range(3)]
    bar = tqdm.tqdm(batches, disable=None, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    del batches
    sums = []
    for _ in range(2):
        for batch in bar:
            fastpurge.sweep(keep=())
            sums.append(batch.sum().item())
        fastpurge.sweep(keep=())
    assert sums == [4] * 6


def test_a_tokenized_batch_is_in_use() -> None:
    transformers = pytest.importorskip("transformers")
    batch = transformers.BatchEncoding({"input_ids": torch.ones(2, 4)})
    fastpurge.sweep(keep=())
    assert batch["input_ids"].sum() == 8


def test_text_generation_continues_beside_a_sweep() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    options = {"max_new_tokens": 24, "min_new_tokens": 20, "eos_token_id": [1, 2], "pad_token_id": 0}
    expected = model.generate(torch.full((2, 8), 5), **options)
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(model.generate(torch.full((2, 8), 5), **options))
        except Exception as error:
            results.append(error)

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            fastpurge.sweep(keep=[model, expected, results])
            time.sleep(0.01)
        thread.join()
    assert all(isinstance(one, torch.Tensor) and torch.equal(one, expected) for one in results), results


DERIVED = {
    "Dataset": ("torch.utils.data", "Dataset"),
    "Sampler": ("torch.utils.data", "Sampler"),
    "Distribution": ("torch.distributions", "Distribution"),
    "Optimizer": ("torch.optim", "Optimizer"),
    "LogitsProcessor": ("transformers.generation.logits_process", "LogitsProcessor"),
    "StoppingCriteria": ("transformers.generation.stopping_criteria", "StoppingCriteria"),
}


@pytest.mark.parametrize("name", DERIVED)
def test_instances_of_derived_torch_classes_are_in_use(name: str) -> None:
    module, attribute = DERIVED[name]
    base = getattr(pytest.importorskip(module), attribute)
    derived: Any = type("Derived", (base,), {"__module__": __name__})
    referent = [derived.__new__(derived)]
    referent[0].table = {"k": torch.ones(4)}
    fastpurge.sweep(keep=())
    assert referent[0].table["k"].sum() == 4


@pytest.mark.parametrize("models", [True, False])
def test_a_model_of_the_program_that_runs_is_in_use_whether_models_are_asked_for_or_not(models: bool) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            fastpurge.sweep(keep=[x], models=models)
            return x * self.weight

    assert Model()(torch.ones(4)).sum() == 4


def test_a_class_created_by_a_function_belongs_to_the_result_of_that_function() -> None:
    from torch._functorch.aot_autograd import aot_function, make_boxed_func  # type: ignore[attr-defined]

    # The graphs are in closures of functions, which are attributes of an `autograd.Function` that
    # AOT autograd creates for each compilation.
    def compiler(gm: Any, example_inputs: Any) -> Any:
        return make_boxed_func(lambda *arguments: gm(*arguments))

    compiled = aot_function(lambda x: x.sin() * x, compiler, compiler)
    x = torch.ones(4, requires_grad=True)
    expected = compiled(x).tolist()
    fastpurge.sweep(keep=[x])
    assert compiled(x).tolist() == expected


def test_a_first_compilation_succeeds_beside_a_sweep() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    compiled = torch.compile(model, backend="aot_eager")
    x, results = torch.ones(2, 4), []
    expected = model(x).sum().item()

    def work() -> None:
        try:
            loss = compiled(x).sum()
            loss.backward()
            results.append(loss.item())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        fastpurge.sweep(keep=[model, compiled, x])
        time.sleep(0.01)
    assert results == [pytest.approx(expected)]
    torch._dynamo.reset()


class TestRootObjects:
    """The search stops at objects from which everything in the program is reachable."""

    def test_a_shell_does_not_keep_its_history(self) -> None:
        pytest.importorskip("IPython")
        from IPython.core.interactiveshell import InteractiveShell

        shell = InteractiveShell()
        shell.run_cell("import torch, fastpurge", store_history=False)
        code = """
fastpurge.sweep(keep=(), guards=fastpurge.Guard.RUNNING)
[is_out, is_name] = [fastpurge.is_purged(Out[1]), fastpurge.is_purged(x)]
"""
        shell.run_cell("import torch; x = torch.ones(4); torch.ones(5)", store_history=True)
        shell.run_cell("y = Out[1]", store_history=True)
        assert shell.run_cell(code, store_history=True).success
        assert shell.user_ns["is_name"]
        assert shell.user_ns["is_out"]
        InteractiveShell.clear_instance()

    def test_output_of_a_shell_is_no_scheduled_callback(self) -> None:
        pytest.importorskip("IPython")
        from IPython.core.interactiveshell import InteractiveShell

        shell = InteractiveShell.instance()
        try:
            made = """
import torch, fastpurge
class Pipe:
    def __init__(self): self.t = torch.ones(6)
    def __call__(self): pass
pipe, other = Pipe(), Pipe()
pipe
"""
            for cell in (made, "other.__call__", "report = fastpurge.sweep(keep=())"):
                assert shell.run_cell(cell, store_history=True).success
            assert is_purged(shell.user_ns["pipe"].t)
            assert is_purged(shell.user_ns["other"].t)
        finally:
            InteractiveShell.clear_instance()

    def test_a_logger_does_not_keep_the_contents_of_its_handlers(self, program: Any) -> None:
        import logging

        program.referent = torch.ones(4)

        logger = logging.getLogger("forgetful")
        logger.handlers.append(collections.UserDict(kept=program.referent))  # type: ignore[arg-type]
        fastpurge.sweep(keep=(), guards=Guard.RUNNING)
        logger.handlers.clear()
        assert is_purged(program.referent)

    def test_an_event_loop_does_not_keep_its_attributes(self, program: Any) -> None:
        import asyncio

        async def main() -> bool:
            loop = asyncio.get_running_loop()
            loop.forgotten = program.referent = torch.ones(4)  # type: ignore[attr-defined]
            fastpurge.sweep(keep=(), guards=Guard.RUNNING)
            return is_purged(program.referent)

        assert asyncio.run(main())


def test_a_plan_lists_modules_with_untracked_attributes_as_a_sweep_releases_them(program: Any) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            self.flag = True
            super().__init__()
            for number in range(40):
                setattr(self, f"option_{number}", number)
            self.layer = torch.nn.Linear(500, 100)

    before = fastpurge.plan(keep=()).spared
    program.model = Model()
    plan = fastpurge.plan(keep=())
    nbytes = 500 * 100 * 4 + 100 * 4
    assert plan.nbytes == nbytes
    report = plan.apply()
    assert sum(item.nbytes for item in report.released) == nbytes
    assert report.spared == plan.spared == before
