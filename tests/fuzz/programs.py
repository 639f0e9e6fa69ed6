"""Random programs from bytes: a sweep releases exactly what the model says, and tombstones raise errors.

`check` takes the bytes of one input.
"""

from __future__ import annotations

from tests import random_programs
from tests.owners import OWNERS

from .choices import Choices


def check(data: bytes) -> None:
    """Build a program, sweep it, and compare the result with the model."""
    choices = Choices(data)
    wipe = choices.one_of([False, True])
    keep = choices.several(3, lambda: choices.number(100))
    steps = choices.several(
        25,
        lambda: (choices.one_of(random_programs.KINDS), choices.several(3, lambda: choices.number(100))),
    )
    owners = choices.several(
        3, lambda: (choices.one_of(sorted(OWNERS)), choices.several(3, lambda: choices.number(100)))
    )
    random_programs.check(steps, keep, wipe=wipe, owners=owners)
