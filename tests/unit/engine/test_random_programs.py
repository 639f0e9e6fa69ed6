"""A sweep of random programs releases exactly the objects that the model of `tests.random_programs` names.

``FASTPURGE_PROGRAMS`` is the number of programs.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.owners import OWNERS
from tests.random_programs import KINDS, Steps, check

PROGRAMS = int(os.environ.get("FASTPURGE_PROGRAMS", "500"))

STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 99), max_size=3)), min_size=1, max_size=25
)
KEEP = st.lists(st.integers(0, 99), max_size=3)
OWNED = st.lists(st.tuples(st.sampled_from(sorted(OWNERS)), KEEP), max_size=3)


@pytest.fixture(scope="module")
def frozen_heap() -> Iterator[None]:
    # `gc.freeze` hides existing objects from the collector, so that a sweep takes milliseconds. The owners
    # run before it, because torch imports a lot at the first use of an optimizer.
    for owner in OWNERS.values():
        owner.run(list, lambda: None)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen_heap")
@pytest.mark.parametrize("name", sorted(OWNERS))
def test_objects_with_owners_in_running_code_survive_and_the_rest_is_released(name: str) -> None:
    check([("leaf", []), ("module", [0]), ("tensor", [])], [], wipe=True, owners=[(name, [0, 1, 2])])


@pytest.mark.usefixtures("frozen_heap")
@settings(deadline=None, max_examples=PROGRAMS, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, keep=KEEP, wipe=st.booleans(), owners=OWNED)
@example(  # an alias of a graph's leaf, where an array is an alias of the graph's result
    steps=[("leaf", []), ("view", [1]), ("product", [0, 1]), ("numpy", [3])], keep=[], wipe=False, owners=[]
)
def test_random_programs_lose_exactly_the_unneeded_objects(
    steps: Steps, keep: list[int], wipe: bool, owners: Steps
) -> None:
    check(steps, keep, wipe=wipe, owners=owners)
