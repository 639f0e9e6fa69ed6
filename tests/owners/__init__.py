"""What running code may hold objects in: each of `USES` takes some, runs a body, and gives back what it has.

A body sweeps. Nothing but what a use is named after refers to the objects meanwhile: no local variable of
its function is one, or a plain container of them, unless that is the use.
"""

from __future__ import annotations

from . import containers, context_variables, waiting_work, with_blocks
from .owner import Use

USES: dict[str, Use] = {
    **with_blocks.USES.made,
    **containers.USES.made,
    **waiting_work.USES.made,
    **context_variables.USES.made,
}
