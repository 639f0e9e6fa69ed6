"""Real architectures: a sweep does not change the results of a kept model by a bit.

By default the architectures in ``CHOICE`` of the modules, which must all build, run and train. With
``FASTPURGE_ZOO=all`` in the environment every architecture that can be built, with ``FASTPURGE_ZOO=half`` one
of the two tests for each architecture of the list.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import fastpurge
import pytest
import torch
from fastpurge import Guard, is_purged

from . import timm_models, transformers_models
from .architecture import Architecture, UnfitError, bits, run
from .training import Training

# Only `keep` protects the objects of a test, not the guard of running code. A wrong release must fail
# the test. Cycles of earlier architectures are more garbage to sweep.
OPTIONS: dict[str, Any] = {"guards": Guard.ALL & ~Guard.RUNNING, "wipe": True, "collect": False}
LIBRARIES: dict[str, Any] = {"transformers": transformers_models, "timm": timm_models}
ALL = os.environ.get("FASTPURGE_ZOO") == "all"
STEP = 2 if os.environ.get("FASTPURGE_ZOO") == "half" else 1
NAMES = [
    f"{library}-{name}"
    for library, module in LIBRARIES.items()
    for name in (module.everything() if ALL else module.CHOICE)
]


@pytest.fixture
def architecture(request: pytest.FixtureRequest) -> Architecture:
    library, _, name = request.param.partition("-")
    return Architecture(partial(LIBRARIES[library].make, name), LIBRARIES[library].feeds)


@contextmanager
def before_any_sweep() -> Iterator[None]:
    """Errors in the block are errors of the library. They skip the test, unless the name is in CHOICE."""
    try:
        yield
    except UnfitError as unfit:
        if not ALL:
            raise
        pytest.skip(str(unfit).splitlines()[0])


@pytest.mark.parametrize("architecture", NAMES[::STEP], indirect=True)
def test_kept_means_bit_for_bit_unchanged(architecture: Architecture, program: Any) -> None:
    with before_any_sweep():
        # The old model runs first, so that caches of the library belong to it.
        program.old = architecture.build().eval()
        program.inputs = architecture.inputs(program.old)
        program.model = architecture.build().eval()
        program.expected = [one.clone() for one in run(program.model, program.inputs)]
        expected = [bits(one) for one in program.expected]
        if [bits(one) for one in run(program.model, program.inputs)] != expected:
            raise UnfitError("computes something else each time")
    forget_things(program)
    fastpurge.sweep(keep=[program.model, program.inputs, program.expected], **OPTIONS)
    assert_all_forgotten_is_purged(program)
    assert is_purged(program.old)
    assert expected
    assert [bits(one) for one in program.expected] == expected
    assert [bits(one) for one in run(program.model, program.inputs)] == expected


@pytest.mark.parametrize("architecture", NAMES[STEP - 1 :: STEP], indirect=True)
def test_a_training_step_goes_on_as_if_nothing_had_been_swept(
    architecture: Architecture, program: Any
) -> None:
    with before_any_sweep():
        program.older, program.old, program.new = (Training(architecture) for _ in range(3))
        for one in program.older, program.old, program.new:
            # Weights that the library does not initialize differ between builds.
            one.model.load_state_dict(program.older.model.state_dict())
        for one in program.older, program.old, program.new:
            one.start()
        halfway = program.new.state()
        program.older.finish()
        program.old.finish()
        expected = program.old.state()
        if program.older.state() != expected:
            raise UnfitError("a step comes out different each time")
        if halfway == expected:
            raise UnfitError("a step changes nothing")
    forget_things(program)
    new = program.new
    fastpurge.sweep(keep=[new.model, new.loss, new.optimizer], **OPTIONS)
    assert_all_forgotten_is_purged(program)
    assert is_purged(program.old.model)
    assert new.state() == halfway
    new.finish()
    assert new.state() == expected


def forget_things(program: Any) -> None:
    """Forget objects as programs do: in a cycle, a cache, a view and a list of models."""
    cycle: dict[str, Any] = {"latent": torch.ones(100)}
    cycle["itself"] = cycle
    program.cycle = cycle
    program.cache = {"latent": torch.ones(100)}
    program.view = torch.ones(100)[10:20]
    program.models = [torch.nn.Sequential(torch.nn.Linear(4, 4))]


def assert_all_forgotten_is_purged(program: Any) -> None:
    assert is_purged(program.cycle["latent"])
    assert is_purged(program.cache["latent"])
    assert is_purged(program.view)
    assert is_purged(program.models[0])
