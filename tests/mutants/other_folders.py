"""Mutants of `let_go`, distributed and automatic sweeps, the notebook and the import of the package."""

from __future__ import annotations

from .mutant import Mutant
from .paths import DISTRIBUTED, LET_GO, NOTEBOOK

MUTANTS = (
    Mutant(
        "forks do not wait for imports",
        "__init__.py",
        "before=_wait_for_other_threads, ",
        "",
        "tests/unit/test_import.py",
    ),
    Mutant(
        "frames that will resume are cleared",
        "exceptions/traceback_frames.py",
        "if one.frame in suspended or not",
        "if not",
        LET_GO,
    ),
    Mutant(
        "the text of an exception changes",
        "exceptions/let_go.py",
        "    _set_values(error, before)\n",
        "",
        LET_GO,
    ),
    Mutant(
        "kept values of exceptions dropped",
        "exceptions/let_go_result.py",
        " if not is_kept(obj))",
        ")",
        LET_GO,
    ),
    Mutant(
        "history entries with kept objects dropped",
        "exceptions/let_go_result.py",
        " and min(indices) >= len(needed)",
        "",
        NOTEBOOK,
    ),
    Mutant(
        "a rank sweeps although another one refuses",
        "distributed/sweep_all_ranks.py",
        "    if failures:\n        return {}, failures, None\n",
        "",
        DISTRIBUTED,
    ),
    Mutant(
        "a missing rank is not named",
        "distributed/sweep_all_ranks.py",
        "    failures = missing | {",
        "    failures = {",
        DISTRIBUTED,
    ),
    Mutant(
        "threads of a rank exchange messages at once",
        "distributed/store_gather.py",
        "if not self._turn.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):",
        "if False:",
        DISTRIBUTED,
    ),
    Mutant(
        "a destroyed group is used",
        "distributed/store_gather.py",
        "    if group not in c10d._world.pg_map:",
        "    if False:",
        DISTRIBUTED,
    ),
    Mutant(
        "stop does not wait for the thread",
        "automatic/watch.py",
        "            self._thread.join(timeout)\n            while",
        "            while",
        "tests/unit/automatic/test_watch.py",
    ),
    Mutant(
        "user variables with IPython's names deleted",
        "frontends/notebook.py",
        "if namespace.get(name) is value:",
        "if name in namespace:",
        NOTEBOOK,
    ),
)
