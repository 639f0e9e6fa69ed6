"""An idle sweep on the scattered heap of a real program: transformers, with a model in use.

Compared with plain Python and with `gc.get_objects`, in one run: ``python -m benches.idle_sweep``.
"""

from __future__ import annotations

import gc

import fastpurge
from fastpurge.frontends.demo import compute, make_model, plain_python_scan

from benches.figures import Figures, show
from benches.ratios import best


def measure() -> Figures:
    """Milliseconds of each call. The garbage collector is off, so that it disturbs none of them."""
    model, tokens = make_model()
    keep = [model, tokens, compute(model, tokens)]
    fastpurge.sweep(keep=keep)
    gc.disable()
    return {
        "gc.get_objects()": best(gc.get_objects),
        "idle plan": best(lambda: fastpurge.plan(keep=keep)),
        "idle sweep": best(lambda: fastpurge.sweep(keep=keep)),
        "plain scan and gc.collect()": best(lambda: plain_python_scan(keep)),
    }


if __name__ == "__main__":
    times = measure()
    show(
        len(gc.get_objects()),
        times,
        {
            "plain scan and gc.collect() / idle sweep": times["plain scan and gc.collect()"]
            / times["idle sweep"],
            "idle plan / gc.get_objects()": times["idle plan"] / times["gc.get_objects()"],
        },
    )
