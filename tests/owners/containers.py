"""Local variables that are instances of library classes and refer to the objects."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import functools
import importlib
import inspect
import io
import operator
import threading
import types
import weakref
from typing import Any
from unittest import mock

import torch
from rich.table import Column
from torch.utils import data

from .owner import Body, OwnerTable, ProgramObject, Take

try:
    tqdm: Any = importlib.import_module("tqdm").tqdm
except ImportError:  # not installed in every environment of the tests
    tqdm = None

OWNERS = OwnerTable()


def _numbered(take: Take) -> dict[Any, Any]:
    return dict(enumerate(take()))


OWNERS.local_variable("UserDict", lambda take: collections.UserDict(_numbered(take)), lambda it: it.values())
OWNERS.local_variable("UserList", lambda take: collections.UserList(take()), list)
OWNERS.local_variable(
    "ChainMap", lambda take: collections.ChainMap({}, _numbered(take)), lambda it: it.values()
)
OWNERS.local_variable(
    "OrderedDict", lambda take: collections.OrderedDict(_numbered(take)), lambda it: it.values()
)
OWNERS.local_variable("Counter", lambda take: collections.Counter(_numbered(take)), lambda it: it.values())
OWNERS.local_variable(
    "defaultdict", lambda take: collections.defaultdict(list, {0: take()}), lambda it: it[0]
)
OWNERS.local_variable("deque", lambda take: collections.deque(take()), list)
OWNERS.local_variable("view of a UserDict", lambda take: collections.UserDict(_numbered(take)).values(), list)
OWNERS.local_variable("iterator of a UserList", lambda take: iter(collections.UserList(take())), list)
OWNERS.local_variable(
    "SimpleNamespace", lambda take: types.SimpleNamespace(owned=take()), lambda it: it.owned
)
OWNERS.local_variable("Namespace", lambda take: argparse.Namespace(owned=take()), lambda it: it.owned)
OWNERS.local_variable(
    "MappingProxyType", lambda take: types.MappingProxyType(_numbered(take)), lambda it: it.values()
)
OWNERS.local_variable("dataclass of a library", lambda take: Column(_cells=take()), lambda it: it._cells)
OWNERS.local_variable("slice", lambda take: slice(take()), lambda it: it.stop)
OWNERS.local_variable("partial", lambda take: functools.partial(list, take()), lambda it: it())
OWNERS.local_variable(
    "partialmethod", lambda take: functools.partialmethod(list, take()), lambda it: it.args[0]
)
OWNERS.local_variable(
    "property", lambda take: property(functools.partial(_second, take())), lambda it: it.fget(None)
)
OWNERS.local_variable(
    "cached_property",
    lambda take: functools.cached_property(functools.partial(_second, take())),
    lambda it: it.func(None),
)
OWNERS.local_variable(
    "methodcaller", lambda take: operator.methodcaller("__add__", take()), lambda it: it([])
)
OWNERS.local_variable(
    "bound arguments", lambda take: inspect.signature(len).bind(take()), lambda it: it.args[0]
)
OWNERS.local_variable(
    "argument of a mock", lambda take: _called(mock.Mock(), take()), lambda it: it.call_args.args[0]
)
OWNERS.local_variable("exception", lambda take: ValueError(take()), lambda it: it.args[0])
OWNERS.local_variable("result of a future", lambda take: _future(take()), lambda it: it.result())


def _second(owned: list[Any], _: object) -> list[Any]:
    return owned


def _called(called: Any, owned: list[Any]) -> Any:
    called(owned)
    return called


def _future(result: list[Any]) -> concurrent.futures.Future[list[Any]]:
    future: concurrent.futures.Future[list[Any]] = concurrent.futures.Future()
    future.set_result(result)
    return future


@OWNERS("results of a cached function")
def results_of_a_cached_function(take: Take, body: Body) -> list[Any]:
    cached = functools.lru_cache(take)
    cached()
    body()
    return cached()


@OWNERS("weak keys")
def weak_keys(take: Take, body: Body) -> list[Any]:
    key = ProgramObject([])
    mapping = weakref.WeakKeyDictionary({key: take()})
    body()
    return mapping[key]


@OWNERS("thread local")
def thread_local(take: Take, body: Body) -> list[Any]:
    local = threading.local()
    local.owned = take()
    body()
    return [*local.owned]


@OWNERS("attribute of an own object", owns="nothing")
def attribute_of_an_own_object(take: Take, body: Body) -> list[Any]:
    own = ProgramObject(take())
    body()
    assert own.owned is not None
    return []


OWNERS.local_variable("subset", lambda take: data.Subset(take(), range(len(take()))), list)
OWNERS.local_variable(
    "datasets in a row", lambda take: data.ConcatDataset([take(), take()]), lambda it: it.datasets[0]
)
OWNERS.local_variable("sampler", lambda take: data.SubsetRandomSampler(take()), lambda it: it.indices)
OWNERS.local_variable(
    "sequential sampler", lambda take: data.SequentialSampler(take()), lambda it: it.data_source
)
OWNERS.local_variable(
    "sampler of batches",
    lambda take: data.BatchSampler(data.SubsetRandomSampler(take()), 2, drop_last=False),
    lambda it: it.sampler.indices,
)


def _loader(take: Take) -> data.DataLoader[Any]:
    dataset: Any = take() or [torch.zeros(1)]  # an empty dataset is an error
    return data.DataLoader(dataset, batch_size=None)


def _loaded(loader: Any, take: Take) -> list[Any]:
    return [*loader][: len(take())]


@OWNERS("loader", accepts="tensors")
def loader_of_data(take: Take, body: Body) -> list[Any]:
    loader = _loader(take)
    body()
    return _loaded(loader, take)


@OWNERS("loader between two batches", accepts="tensors")
def loader_between_two_batches(take: Take, body: Body) -> list[Any]:
    batches = iter(_loader(lambda: [torch.zeros(1), *take()]))
    next(batches)
    body()
    return [*batches]


def _normals(take: Take) -> list[Any]:
    return [torch.distributions.Normal(one, 1.0, validate_args=False) for one in take()]


def _means(distributions: Any) -> list[Any]:
    return [one.mean for one in distributions]


OWNERS.local_variable("distributions", _normals, _means, accepts="floats")


@OWNERS("distribution of a distribution", accepts="floats")
def distribution_of_a_distribution(take: Take, body: Body) -> list[Any]:
    normals = collections.UserList([torch.distributions.Independent(one, 0) for one in _normals(take)])
    body()
    return _means(normals)


def _optimizer(take: Take) -> torch.optim.Optimizer:
    unique = {id(one): one for one in take()}
    groups: Any = [{"params": [one]} for one in unique.values()] or [
        torch.zeros(1)
    ]  # an empty list is an error
    return torch.optim.SGD(groups)


def _parameters(optimizer: Any, take: Take) -> list[Any]:
    known = {id(one): one for group in optimizer.param_groups for one in group["params"]}
    return [known[id(one)] for one in take()]


@OWNERS("optimizer", accepts="leaves")
def optimizer_of_leaves(take: Take, body: Body) -> list[Any]:
    optimizer = _optimizer(take)
    body()
    return _parameters(optimizer, take)


@OWNERS("schedule of learning rates", accepts="leaves")
def schedule_of_learning_rates(take: Take, body: Body) -> list[Any]:
    schedule = torch.optim.lr_scheduler.LambdaLR(_optimizer(take), float)
    body()
    return _parameters(schedule.optimizer, take)


if tqdm is not None:

    @OWNERS("progress bar between two epochs")
    def progress_bar_between_two_epochs(take: Take, body: Body) -> list[Any]:
        # Without the monitor thread, which would outlive the program.
        with mock.patch.object(tqdm, "monitor_interval", 0):
            bar = tqdm(take(), file=io.StringIO())
        assert len([*bar]) == len(bar)
        body()
        return [*bar]
