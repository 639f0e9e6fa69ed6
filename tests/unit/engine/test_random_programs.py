"""Random programs against a plain model of what must survive a sweep and what must go.

``FASTPURGE_PROGRAMS`` is how many.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.owners import USES
from tests.random_programs import KINDS, Steps, check

PROGRAMS = int(os.environ.get("FASTPURGE_PROGRAMS", "500"))

STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 99), max_size=3)), min_size=1, max_size=25
)
KEEP = st.lists(st.integers(0, 99), max_size=3)
IN_USE = st.lists(st.tuples(st.sampled_from(sorted(USES)), KEEP), max_size=3)


@pytest.fixture(scope="module")
def frozen_heap() -> Iterator[None]:
    # What was there before is put out of the collector's sight, so that a sweep takes milliseconds; and so
    # is what torch imports at the first use of an optimizer.
    for use in USES.values():
        use.run(list, lambda: None)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen_heap")
@pytest.mark.parametrize("name", sorted(USES))
def test_objects_with_owners_in_running_code_survive_and_the_rest_is_released(name: str) -> None:
    check([("leaf", []), ("module", [0]), ("tensor", [])], [], wipe=True, uses=[(name, [0, 1, 2])])


@pytest.mark.usefixtures("frozen_heap")
@settings(deadline=None, max_examples=PROGRAMS, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, keep=KEEP, wipe=st.booleans(), uses=IN_USE)
@example(  # an alias of a leaf of the graph of an alias of what an array reads
    steps=[("leaf", []), ("view", [1]), ("product", [0, 1]), ("numpy", [3])], keep=[], wipe=False, uses=[]
)
def test_random_programs_lose_exactly_the_unneeded_objects(
    steps: Steps, keep: list[int], wipe: bool, uses: Steps
) -> None:
    check(steps, keep, wipe=wipe, uses=uses)
