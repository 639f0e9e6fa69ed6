"""Mutants of what is known about torch, NumPy and compiled code."""

from __future__ import annotations

from .mutant import Mutant
from .paths import AUTOGRAD, KEEP, RECORDERS, TRACING

MUTANTS = (
    Mutant(
        "unreadable compiled code released",
        "torch_facts/compiled.py",
        "key.startswith(_MADE_BY_DYNAMO)",
        "False",
        "tests/unit/torch_facts/test_compiled.py",
    ),
    Mutant(
        "references of NumPy records ignored",
        "torch_facts/hidden_references.py",
        "*array_types(), *record_types()",
        "*array_types()",
        KEEP,
    ),
    Mutant(
        "constants of script modules counted as owned",
        "torch_facts/hidden_references.py",
        "yield from script_modules.parameters_and_buffers(obj)",
        "yield from (tensor for tensor, _ in script_modules.labelled_tensors(obj))",
        "tests/unit/torch_facts/test_cpp_owners.py",
    ),
    Mutant(
        "compiled code not kept",
        "torch_facts/compiled.py",
        '"__name__") is None:',
        '"__name__") or True:',
        "tests/unit/torch_facts/test_compiled.py",
    ),
    Mutant(
        "tracing not suspended",
        "torch_facts/recorders.py",
        "_set_tracing_state(None)",
        "pass",
        TRACING,
    ),
    Mutant(
        "modes not suspended",
        "torch_facts/recorders.py",
        "in take():",
        "in ():",
        RECORDERS,
    ),
    Mutant(
        "compiled by its caller",
        "torch_facts/recorders.py",
        "._torchdynamo_disable = True",
        ".x = True",
        TRACING,
    ),
    Mutant(
        "contents of script modules ignored",
        "torch_facts/hidden_references.py",
        "            if is_a(obj, *script_modules.TYPES):",
        "            if False:",
        KEEP,
    ),
    Mutant(
        "contents of arrays ignored",
        "torch_facts/hidden_references.py",
        "                yield from referents_of_array(obj)",
        "                pass",
        KEEP,
    ),
    Mutant(
        "instances with an unpack hook not kept",
        "torch_facts/autograd.py",
        'for name in ("data", "unpack_hook")',
        'for name in ("data",)',
        AUTOGRAD,
    ),
    Mutant(
        "memory ranges of arrays ignored",
        "torch_facts/hidden_references.py",
        "            yield range_of_array(obj)\n",
        "",
        KEEP,
    ),
)
