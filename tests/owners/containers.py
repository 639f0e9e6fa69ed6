"""Objects of libraries' classes in local variables, and of what they lead to."""

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

from .owner import Body, Own, Take, Uses

try:
    tqdm: Any = importlib.import_module("tqdm").tqdm
except ImportError:  # not everywhere where the tests run
    tqdm = None

USES = Uses()


def _numbered(take: Take) -> dict[Any, Any]:
    return dict(enumerate(take()))


USES.local("UserDict", lambda take: collections.UserDict(_numbered(take)), lambda it: it.values())
USES.local("UserList", lambda take: collections.UserList(take()), list)
USES.local("ChainMap", lambda take: collections.ChainMap({}, _numbered(take)), lambda it: it.values())
USES.local("OrderedDict", lambda take: collections.OrderedDict(_numbered(take)), lambda it: it.values())
USES.local("Counter", lambda take: collections.Counter(_numbered(take)), lambda it: it.values())
USES.local("defaultdict", lambda take: collections.defaultdict(list, {0: take()}), lambda it: it[0])
USES.local("deque", lambda take: collections.deque(take()), list)
USES.local("view of a UserDict", lambda take: collections.UserDict(_numbered(take)).values(), list)
USES.local("iterator of a UserList", lambda take: iter(collections.UserList(take())), list)
USES.local("SimpleNamespace", lambda take: types.SimpleNamespace(held=take()), lambda it: it.held)
USES.local("Namespace", lambda take: argparse.Namespace(held=take()), lambda it: it.held)
USES.local("MappingProxyType", lambda take: types.MappingProxyType(_numbered(take)), lambda it: it.values())
USES.local("dataclass of a library", lambda take: Column(_cells=take()), lambda it: it._cells)
USES.local("slice", lambda take: slice(take()), lambda it: it.stop)
USES.local("partial", lambda take: functools.partial(list, take()), lambda it: it())
USES.local("partialmethod", lambda take: functools.partialmethod(list, take()), lambda it: it.args[0])
USES.local("property", lambda take: property(functools.partial(_second, take())), lambda it: it.fget(None))
USES.local(
    "cached_property",
    lambda take: functools.cached_property(functools.partial(_second, take())),
    lambda it: it.func(None),
)
USES.local("methodcaller", lambda take: operator.methodcaller("__add__", take()), lambda it: it([]))
USES.local("bound arguments", lambda take: inspect.signature(len).bind(take()), lambda it: it.args[0])
USES.local("argument of a mock", lambda take: _called(mock.Mock(), take()), lambda it: it.call_args.args[0])
USES.local("exception", lambda take: ValueError(take()), lambda it: it.args[0])
USES.local("result of a future", lambda take: _future(take()), lambda it: it.result())


def _second(held: list[Any], _: object) -> list[Any]:
    return held


def _called(called: Any, held: list[Any]) -> Any:
    called(held)
    return called


def _future(result: list[Any]) -> concurrent.futures.Future[list[Any]]:
    future: concurrent.futures.Future[list[Any]] = concurrent.futures.Future()
    future.set_result(result)
    return future


@USES("results of a cached function")
def results_of_a_cached_function(take: Take, body: Body) -> list[Any]:
    cached = functools.lru_cache(take)
    cached()
    body()
    return cached()


@USES("weak keys")
def weak_keys(take: Take, body: Body) -> list[Any]:
    key = Own([])
    mapping = weakref.WeakKeyDictionary({key: take()})
    body()
    return mapping[key]


@USES("thread local")
def thread_local(take: Take, body: Body) -> list[Any]:
    local = threading.local()
    local.held = take()
    body()
    return [*local.held]


@USES("attribute of an own object", holds="nothing")
def attribute_of_an_own_object(take: Take, body: Body) -> list[Any]:
    own = Own(take())
    body()
    assert own.held is not None
    return []


USES.local("subset", lambda take: data.Subset(take(), range(len(take()))), list)
USES.local("datasets in a row", lambda take: data.ConcatDataset([take(), take()]), lambda it: it.datasets[0])
USES.local("sampler", lambda take: data.SubsetRandomSampler(take()), lambda it: it.indices)
USES.local("sequential sampler", lambda take: data.SequentialSampler(take()), lambda it: it.data_source)
USES.local(
    "sampler of batches",
    lambda take: data.BatchSampler(data.SubsetRandomSampler(take()), 2, drop_last=False),
    lambda it: it.sampler.indices,
)


def _loader(take: Take) -> data.DataLoader[Any]:
    dataset: Any = take() or [torch.zeros(1)]  # it takes no empty one
    return data.DataLoader(dataset, batch_size=None)


def _loaded(loader: Any, take: Take) -> list[Any]:
    return [*loader][: len(take())]


@USES("loader", accepts="tensors")
def loader_of_data(take: Take, body: Body) -> list[Any]:
    loader = _loader(take)
    body()
    return _loaded(loader, take)


@USES("loader between two batches", accepts="tensors")
def loader_between_two_batches(take: Take, body: Body) -> list[Any]:
    batches = iter(_loader(lambda: [torch.zeros(1), *take()]))
    next(batches)
    body()
    return [*batches]


def _normals(take: Take) -> list[Any]:
    return [torch.distributions.Normal(one, 1.0, validate_args=False) for one in take()]


def _means(distributions: Any) -> list[Any]:
    return [one.mean for one in distributions]


USES.local("distributions", _normals, _means, accepts="floats")


@USES("distribution of a distribution", accepts="floats")
def distribution_of_a_distribution(take: Take, body: Body) -> list[Any]:
    normals = collections.UserList([torch.distributions.Independent(one, 0) for one in _normals(take)])
    body()
    return _means(normals)


def _optimizer(take: Take) -> torch.optim.Optimizer:
    unique = {id(one): one for one in take()}
    groups: Any = [{"params": [one]} for one in unique.values()] or [torch.zeros(1)]  # it takes no empty list
    return torch.optim.SGD(groups)


def _parameters(optimizer: Any, take: Take) -> list[Any]:
    known = {id(one): one for group in optimizer.param_groups for one in group["params"]}
    return [known[id(one)] for one in take()]


@USES("optimizer", accepts="leaves")
def optimizer_of_leaves(take: Take, body: Body) -> list[Any]:
    optimizer = _optimizer(take)
    body()
    return _parameters(optimizer, take)


@USES("schedule of learning rates", accepts="leaves")
def schedule_of_learning_rates(take: Take, body: Body) -> list[Any]:
    schedule = torch.optim.lr_scheduler.LambdaLR(_optimizer(take), float)
    body()
    return _parameters(schedule.optimizer, take)


if tqdm is not None:

    @USES("progress bar between two epochs")
    def progress_bar_between_two_epochs(take: Take, body: Body) -> list[Any]:
        # No thread of its own, which would outlive the program.
        with mock.patch.object(tqdm, "monitor_interval", 0):
            bar = tqdm(take(), file=io.StringIO())
        assert len([*bar]) == len(bar)
        body()
        return [*bar]
