"""Mutants of the node pack. Their tests need ComfyUI: run with the interpreter of .nox/comfyui."""

from __future__ import annotations

from .mutant import Mutant

NODES = "tests/comfyui/nodes/test_nodes.py"
COMFYUI = "tests/comfyui/comfyui/test_pending.py tests/comfyui/comfyui/test_loaded_models.py tests/comfyui/comfyui/test_leaks.py"
UNKEPT_TENSORS = "tests/comfyui/comfyui/test_unkept_tensors.py"
CUSTOM_NODE_PACKS = "tests/comfyui/comfyui/test_custom_node_packs.py"
PACK_STORAGE = "tests/comfyui/comfyui/test_pack_storage.py"
PROMPT_MODELS = "tests/comfyui/comfyui/test_prompt_models.py"
AUTOMATIC = "tests/comfyui/server/test_automatic.py"
BETWEEN_PROMPTS = "tests/comfyui/server/test_between_prompts.py"
ABORTED_REQUESTS = "tests/comfyui/server/test_aborted_requests.py"
ROUTES = "tests/comfyui/server/test_routes.py"

MUTANTS = (
    Mutant(
        "pending nodes not protected",
        "comfy/nodes/purges.py",
        "*(prompt.reads() if protect_pending else ())",
        "",
        f"{COMFYUI} tests/comfyui/comfyui/test_versions.py",
    ),
    Mutant(
        "inputs of a purge node evicted from the cache",
        "comfy/nodes/purges.py",
        "cached = (*needed, *prompt.wired())",
        "cached = (*needed,)",
        NODES,
    ),
    Mutant(
        "cache entries not evicted",
        "comfy/nodes/purges.py",
        "        entry.evict()\n",
        "        pass\n",
        COMFYUI,
    ),
    Mutant(
        "ComfyUI's list of loaded models not protected",
        "comfy/nodes/purges.py",
        ", *loaded_models.on_the_books()]",
        "]",
        COMFYUI,
    ),
    Mutant(
        "storage of custom nodes ignored",
        "comfy/nodes/purges.py",
        "found = pack_storage.find(prompt.code, prompt.books)",
        "found = pack_storage.find((), ())[:0]",
        CUSTOM_NODE_PACKS,
    ),
    Mutant(
        "globals of custom nodes ignored",
        "comfy/comfyui/pack_storage.py",
        "if packs.is_theirs(namespace(module)):",
        "if False:",
        CUSTOM_NODE_PACKS,
    ),
    Mutant(
        "attributes of node classes ignored",
        "comfy/comfyui/pack_storage.py",
        "        *_node_classes(packs),\n",
        "",
        CUSTOM_NODE_PACKS,
    ),
    Mutant(
        "attributes of node instances ignored",
        "comfy/comfyui/pack_storage.py",
        "        *_instances(packs, caches),\n",
        "",
        f"{COMFYUI} {PACK_STORAGE}",
    ),
    Mutant(
        "threads of custom nodes ignored",
        "comfy/comfyui/pack_storage.py",
        "        *_threads(packs),\n",
        "",
        CUSTOM_NODE_PACKS,
    ),
    Mutant(
        "running functions of custom nodes ignored",
        "comfy/comfyui/pack_storage.py",
        "        *_running(packs),\n",
        "",
        CUSTOM_NODE_PACKS,
    ),
    Mutant(
        "suspended functions of custom nodes ignored",
        "comfy/comfyui/pack_storage.py",
        "        *_waiting(packs, (one for one in code if not is_a(one, ModuleType))),\n",
        "",
        CUSTOM_NODE_PACKS,
    ),
    Mutant(
        "weak references of custom nodes ignored",
        "comfy/comfyui/unkept_tensors.py",
        "found = (*_behind(fresh), ",
        "found = (",
        CUSTOM_NODE_PACKS,
    ),
    Mutant(
        "arrays of custom nodes ignored",
        "comfy/comfyui/unkept_tensors.py",
        ", *hidden_references.contents(fresh))",
        ",)",
        CUSTOM_NODE_PACKS,
    ),
    Mutant(
        "objects reachable from an exception stay in the cache",
        "comfy/nodes/purges.py",
        "boundary=[*prompt.books, prompt.execution]",
        "boundary=[]",
        PACK_STORAGE,
    ),
    Mutant(
        "dynamic models of the prompt not protected",
        "comfy/nodes/purges.py",
        ", *prompt.in_use, ",
        ", ",
        PROMPT_MODELS,
    ),
    Mutant(
        "models released without their patchers",
        "comfy/comfyui/loaded_models.py",
        '"dynamic_pins" in on_model',
        "False",
        PROMPT_MODELS,
    ),
    Mutant(
        "free memory before the prompt not recorded",
        "comfy/nodes/purge_nodes.py",
        "            free_memory.note(dynprompt[0])\n",
        "",
        "tests/comfyui/nodes/test_memory_report.py",
    ),
    Mutant(
        "cycles not collected",
        "comfy/nodes/purges.py",
        "        gc.collect()  # what is in a cycle",
        "        pass  #",
        COMFYUI,
    ),
    Mutant(
        "nodes of the newer API do not expand",
        "comfy/comfyui/prompt.py",
        'any("DYNPROMPT" in one for one in hidden.values())',
        '"DYNPROMPT" in hidden.values()',
        COMFYUI,
    ),
    Mutant(
        "tombstones stay in the output cache",
        "comfy/comfyui/prompt.py",
        "caches.evicted_when_read(handed[node][source], self.caches)",
        "handed[node][source]",
        "tests/comfyui/comfyui/test_pending.py",
    ),
    Mutant(
        "arguments of the executor not protected",
        "comfy/comfyui/prompt.py",
        "[*self.at_hand, *self.reads_of(self.pending())]",
        "[*self.reads_of(self.pending())]",
        UNKEPT_TENSORS,
    ),
    Mutant(
        "outer prompts not protected",
        "comfy/nodes/purges.py",
        "prompt.graph, *prompt.books,",
        "prompt.graph, *prompt.caches,",
        UNKEPT_TENSORS,
    ),
    Mutant(
        "packs behind symbolic links not found",
        "comfy/comfyui/custom_node_packs.py",
        "            if entry.is_symlink()",
        "            if False",
        CUSTOM_NODE_PACKS,
    ),
    Mutant(
        "dead models stay in ComfyUI's list",
        "comfy/comfyui/loaded_models.py",
        "    _strike_dead(kept)\n",
        "",
        COMFYUI,
    ),
    Mutant(
        "models wired into the purge unloaded",
        "comfy/comfyui/loaded_models.py",
        "if _real(one) in kept or one.model in kept",
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
        "ComfyUI's own modules count as the program",
        "comfy/pack.py",
        "is_library=True",
        "is_library=False",
        f"{COMFYUI} tests/comfyui/nodes/test_sampling.py",
    ),
    Mutant(
        "purged while a prompt runs",
        "comfy/server/between_prompts.py",
        " or self._queue.currently_running:",
        ":",
        BETWEEN_PROMPTS,
    ),
    Mutant(
        "the thread that runs prompts is not woken",
        "comfy/server/between_prompts.py",
        "            self._queue.not_empty.notify_all()\n",
        "",
        BETWEEN_PROMPTS,
    ),
    Mutant(
        "a purge under way is cancelled",
        "comfy/server/between_prompts.py",
        "if monotonic() >= late and future.cancel():",
        "if monotonic() >= late:",
        BETWEEN_PROMPTS,
    ),
    Mutant(
        "an aborted request is logged as an error",
        "comfy/server/routes.py",
        "(web.RequestPayloadError, ConnectionError)",
        "web.RequestPayloadError",
        ABORTED_REQUESTS,
    ),
    Mutant(
        "a sweep keeps ComfyUI from ending",
        "comfy/server/routes.py",
        "Thread(target=run, daemon=True)",
        "Thread(target=run)",
        ABORTED_REQUESTS,
    ),
    Mutant(
        "temporary peaks trigger a purge",
        "comfy/server/automatic.py",
        "    if mark.is_passed(before):",
        "    if True:",
        AUTOMATIC,
    ),
    Mutant(
        "purges without effect repeated",
        "comfy/server/automatic.py",
        "        mark.note_swept(after)\n",
        "",
        AUTOMATIC,
    ),
    Mutant(
        "Purge ALL waits until all memories are full",
        "comfy/nodes/thresholds.py",
        "max(shares.values()) > only_above",
        "min(shares.values()) > only_above",
        "tests/comfyui/nodes/test_thresholds.py",
    ),
    Mutant(
        "requests from foreign host names accepted",
        "comfy/server/routes.py",
        " or not _is_address(own.hostname)",
        "",
        ROUTES,
    ),
    Mutant(
        "requests by HTML forms accepted",
        "comfy/server/routes.py",
        'request.content_type != "application/json"',
        "False",
        ROUTES,
    ),
    Mutant(
        "the cache of node instances counted as an output cache",
        "comfy/comfyui/prompt.py",
        "others=_without(outputs, served),",
        "others=(),",
        ROUTES,
    ),
)
