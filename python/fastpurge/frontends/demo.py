"""The demo: leaks more than a gigabyte beside a real model, sweeps, and checks the result."""

import gc
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console

import fastpurge
from fastpurge.allocators.resident_set import resident_bytes
from fastpurge.reporting.plots import save
from fastpurge.reporting.text import human

_FORGOTTEN_BYTES = 300 * 2**20


def run(console: Console | None = None, *, plot: Path | None = None) -> bool:
    """Run the demo. Returns whether every check passed. Plots the report to the file ``plot``, if given."""
    console = console or Console(highlight=False)
    console.rule("fastpurge demo: a model in use, and memory that nobody needs")
    model, tokens = make_model()
    expected = compute(model, tokens)
    size = sum(parameter.nbytes for parameter in model.parameters())
    console.print(f"in use: {type(model).__name__}, {human(size)} of weights, random")

    fastpurge.trim()  # otherwise free heap would absorb some of the leaks
    before = resident_bytes()
    forgetful = _forget(console)
    leaked = resident_bytes() - before
    console.print(f"leaked in all: {human(leaked)}; gc.collect() alone would free a part\n")
    keep = [model, tokens, expected]
    plain_seconds = plain_python_scan(keep)

    plan = fastpurge.plan(keep=keep, label="the demo")
    console.print(str(plan), "\n", soft_wrap=True, markup=False)
    start = resident_bytes()
    report = plan.apply()
    freed = start - resident_bytes()
    console.print(str(report), "\n", soft_wrap=True, markup=False)

    if plot is not None:
        save(report.plot(), plot)
        console.print(f"drawn: {plot}\n")

    started = perf_counter()
    fastpurge.sweep(keep=keep)
    idle_seconds = perf_counter() - started
    console.print(
        f"time, same heap: plain Python scan and collect {plain_seconds * 1e3:.0f} ms "
        f"(and nothing freed yet); fastpurge, all of it {report.seconds * 1e3:.0f} ms; "
        f"fastpurge with nothing left to free {idle_seconds * 1e3:.0f} ms, "
        f"{plain_seconds / idle_seconds:.0f}x faster than plain Python"
    )
    checks = {
        "the model's output is bit for bit the same": torch.equal(compute(model, tokens), expected),
        f"at least 90% is back at the OS ({freed / leaked:.0%})": freed >= 0.9 * leaked,
        "the report agrees with the OS": abs(report.freed_bytes - freed) <= 0.1 * freed,
        "a tombstone is loud": _tombstone_is_loud(forgetful, console),
    }
    for check, holds in checks.items():
        console.print(f"{'ok    ' if holds else 'FAILED'} {check}", style="" if holds else "bold red")
    return all(checks.values())


def plain_python_scan(keep: object) -> float:
    """Find what `keep` does not reach as a purge in plain Python does. Returns the seconds.

    It makes a whitelist of ids, two passes over `gc.get_objects`, and a full collection. It releases nothing.
    """
    started = perf_counter()
    gc.collect()
    whitelist: set[int] = set()
    _whitelist(keep, whitelist)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance makes modules warn of deprecated names
        tensors = [x for x in gc.get_objects() if torch.is_tensor(x) and id(x) not in whitelist]
        modules = [x for x in gc.get_objects() if isinstance(x, torch.nn.Module) and id(x) not in whitelist]
    seconds = perf_counter() - started
    del tensors, modules
    return seconds


def _whitelist(obj: object, whitelist: set[int]) -> None:
    if id(obj) in whitelist:
        return
    whitelist.add(id(obj))
    if isinstance(obj, torch.nn.Module):
        _whitelist(vars(obj), whitelist)
    elif isinstance(obj, dict):
        for value in obj.values():
            _whitelist(value, whitelist)
    elif isinstance(obj, list | tuple | set):
        for value in obj:
            _whitelist(value, whitelist)


def make_model() -> tuple[Any, torch.Tensor]:
    """A GPT-2 with random weights, and tokens for it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(GPT2Config(n_layer=6))
    return model.eval(), torch.arange(64).reshape(1, 64)


def compute(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of the model for the tokens."""
    with torch.inference_mode():
        logits: torch.Tensor = model(tokens).logits
    return logits


def _forget(console: Console) -> Any:
    """Leak memory in the usual ways, from a module that represents a user's program."""
    forgetful: Any = types.ModuleType("forgetful")
    sys.modules["forgetful"] = forgetful
    ways: dict[str, Callable[[Any], None]] = {
        "a module-level cache": _in_a_cache,
        "a reference cycle": _in_a_cycle,
        "an old model, still in a list": _in_an_old_model,
        "a view of eight numbers on a large tensor": _in_a_view,
        "a tensor in a traceback": _in_a_traceback,
    }
    for name, way in ways.items():
        before = resident_bytes()
        way(forgetful)
        console.print(f"leaked: {human(resident_bytes() - before):>9} in {name}")
    return forgetful


def _big() -> torch.Tensor:
    return torch.ones(_FORGOTTEN_BYTES // 4)


def _in_a_cache(forgetful: Any) -> None:
    forgetful.CACHE = {"sdxl": _big()}


def _in_a_cycle(_: Any) -> None:
    node: dict[str, Any] = {"latent": _big()}
    node["itself"] = node


def _in_an_old_model(forgetful: Any) -> None:
    forgetful.MODELS = [make_model()[0]]


def _in_a_view(forgetful: Any) -> None:
    forgetful.PREVIEW = _big()[:8]


def _in_a_traceback(forgetful: Any) -> None:
    def fail() -> None:
        activations = _big()
        raise ValueError(f"shape mismatch: {tuple(activations.shape)}")

    try:
        fail()
    except ValueError as error:
        forgetful.LAST_ERROR = error


def _tombstone_is_loud(forgetful: Any, console: Console) -> bool:
    try:
        forgetful.CACHE["sdxl"] + 1
    except fastpurge.PurgedError as error:
        console.print(f"using a tombstone: PurgedError: {error}", markup=False)
        return True
    return False
