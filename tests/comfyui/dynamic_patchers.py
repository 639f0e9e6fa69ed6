"""Adds dynamic model patchers and a model tracker, as in ComfyUI 0.29, to a copy of the installed ComfyUI.

In ComfyUI these exist only with a GPU. Dynamic model patchers store on their models how much memory they have
pinned; the tracker of the executor writes to each of these models when the prompt ends; and a patcher unpins
memory when it is destroyed. The code added here is a small model of that, with ComfyUI's names. Its tracker
also tracks images, which no ComfyUI does yet.
"""

from __future__ import annotations

from pathlib import Path

from tests.comfyui.comfyui_process import prepare

_PATCHERS = """


PINNED = {"bytes": 0}


class ModelPatcherDynamic(ModelPatcher):
    def __init__(self, model, load_device, offload_device):
        super().__init__(model, load_device, offload_device)
        if not hasattr(model, "dynamic_pins"):
            model.dynamic_pins, model.dynamic_patchers = {}, set()
        if load_device not in model.dynamic_pins:
            model.dynamic_pins[load_device] = {"weights": 1 << 20, "current_prompt": False}
            PINNED["bytes"] += 1 << 20
        model.dynamic_patchers.add(id(self))

    def is_dynamic(self):
        return True

    def set_in_use_by_current_prompt(self, in_use):
        self.model.dynamic_pins[self.load_device]["current_prompt"] = in_use

    def unpin_all_weights(self):
        PINNED["bytes"] -= self.model.dynamic_pins[self.load_device]["weights"]
        self.model.dynamic_pins[self.load_device]["weights"] = 0

    def __del__(self):
        patchers = getattr(getattr(self, "model", None), "dynamic_patchers", None)
        if patchers is not None and id(self) in patchers:
            patchers.discard(id(self))
            if not patchers:
                self.unpin_all_weights()


class PromptModelTracker:
    def __init__(self):
        self.models = {}
        self.images = []

    def start(self):
        self.end()

    def add(self, outputs):
        for output in outputs:
            if isinstance(output, (list, tuple)):
                self.add(output)
            elif isinstance(output, ModelPatcherDynamic):
                self.models[id(output.model), output.load_device] = output
                output.set_in_use_by_current_prompt(True)
            elif isinstance(output, torch.Tensor):
                self.images.append(output)

    def end(self):
        for model in self.models.values():
            model.set_in_use_by_current_prompt(False)
        self.models.clear()
"""

_EXECUTOR = """


def _tracking(execute_async):
    async def execute_tracked(self, *args, **kwargs):
        self.prompt_model_tracker.start()
        try:
            return await execute_async(self, *args, **kwargs)
        finally:
            self.prompt_model_tracker.end()

    return execute_tracked


PromptExecutor.execute_async = _tracking(PromptExecutor.execute_async)
"""

_CREATED = "            execution_list = ExecutionList(dynamic_prompt, self.caches.outputs)\n"
_UPDATED = "    def cache_update(self, node_id, value):\n"


def prepare_dynamic_patchers(folder: Path) -> None:
    """Copy such a ComfyUI with the pack into a folder."""
    prepare(folder)
    code = folder / "ComfyUI"
    _edit(code / "comfy" / "model_patcher.py", "", "", _PATCHERS)
    _edit(
        code / "execution.py",
        "        self.server = server\n        self.reset()\n",
        "        self.server = server\n"
        "        self.prompt_model_tracker = comfy.model_patcher.PromptModelTracker()\n"
        "        self.reset()\n",
        _EXECUTOR,
    )
    tracks = f"{_CREATED}            execution_list.track = self.prompt_model_tracker.add\n"
    _edit(code / "execution.py", _CREATED, tracks, "")
    _edit(
        code / "comfy_execution" / "graph.py",
        _UPDATED,
        f"{_UPDATED}        self.track(value.outputs)\n",
        "",
    )


def _edit(file: Path, old: str, new: str, further: str) -> None:
    text = file.read_text()
    assert old in text, f"{file.name} of this ComfyUI does not have the expected text"
    if old:
        text = text.replace(old, new, 1)
    file.write_text(text + further)
