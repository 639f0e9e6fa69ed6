"""Mutants of the package: each switches off one guard or protection, and a test must fail.

`python -m tests.mutants` runs them. Each table holds the mutants of one folder of the package.
"""

from __future__ import annotations

from . import comfy, engine, other_folders, python_facts, torch_facts

MUTANTS = (*engine.MUTANTS, *torch_facts.MUTANTS, *python_facts.MUTANTS, *other_folders.MUTANTS)
MUTANTS_OF_THE_PACK = comfy.MUTANTS
