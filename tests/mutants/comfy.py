"""Mutants of the node pack. Their tests need ComfyUI: run with the interpreter of .nox/comfyui."""

from __future__ import annotations

from .mutant import Mutant

NODES = "tests/comfyui/nodes/test_nodes.py"
PENDING = "tests/comfyui/comfyui/test_pending.py tests/comfyui/comfyui/test_loaded_models.py tests/comfyui/comfyui/test_leaks.py"
PENDING_RESULTS = "tests/comfyui/comfyui/test_unkept_tensors.py"
ROOTS = "tests/comfyui/comfyui/test_custom_node_roots.py"
PACK_STORAGE = "tests/comfyui/comfyui/test_stateful_nodes.py"
PROMPT_MODELS = "tests/comfyui/comfyui/test_prompt_models.py"
MEMORY_WATCH = "tests/comfyui/server/test_memory_watch.py"
BETWEEN_PROMPTS = "tests/comfyui/server/test_between_prompts.py"
ABORTED = "tests/comfyui/server/test_aborted_requests.py"
ROUTES = "tests/comfyui/server/test_routes.py"
ROUTE_CHECKS = "tests/comfyui/server/test_route_checks.py"

MUTANTS = (
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
    Mutant(
        "nothing evicted",
        "comfy/nodes/purges.py",
        "        entry.evict()\n",
        "        pass\n",
        PENDING,
    ),
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
        f"{PENDING} {PACK_STORAGE}",
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
        PACK_STORAGE,
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
        "models wired into the purge unloaded",
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
