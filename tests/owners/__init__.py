"""Ways in which running code refers to objects: each of `OWNERS` takes some, runs a body, and returns them.

The body sweeps. During it, only the owner refers to the objects: no local variable of its function is one
of them or a plain container of them, unless the owner is that variable.
"""

from __future__ import annotations

from . import containers, context_variables, waiting_work, with_blocks
from .owner import Owner

OWNERS: dict[str, Owner] = {
    **with_blocks.OWNERS.by_name,
    **containers.OWNERS.by_name,
    **waiting_work.OWNERS.by_name,
    **context_variables.OWNERS.by_name,
}
