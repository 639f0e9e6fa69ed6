"""The example workflows run, and their two formats are equivalent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.comfyui_process import REPOSITORY, Server
from tests.comfyui.graphs import Graph

EXAMPLES = REPOSITORY / "examples" / "comfyui"
NAMES = sorted(file.name.removesuffix(".api.json") for file in EXAMPLES.glob("*.api.json"))

# A tiny model and noise replace models of several gigabytes.
STAND_INS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "CheckpointLoaderSimple": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_wan.safetensors"}, set()),
    "CLIPTextEncode": ("FPT_Conditioning", {}, {"clip"}),
    "EmptyLatentImage": ("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 1}, set()),
    "VAEDecode": ("FPT_Decode", {}, {"vae"}),
    "KSampler": ("KSampler", {"steps": 2}, set()),
}


def _load(name: str) -> Any:
    return json.loads((EXAMPLES / name).read_text(encoding="utf-8"))


def _with_stand_ins(graph: Graph) -> Graph:
    for of in graph.values():
        if of["class_type"] in STAND_INS:
            of["class_type"], more, less = STAND_INS[of["class_type"]]
            of["inputs"] = {name: value for name, value in of["inputs"].items() if name not in less} | more
    return graph


@pytest.fixture(scope="module", autouse=True)
def picture(home: Path, server: Server) -> None:
    from PIL import Image

    folder = home / "base" / "input"
    folder.mkdir(exist_ok=True)
    Image.effect_mandelbrot((512, 512), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(folder / "example.png")


@pytest.mark.parametrize("name", NAMES)
def test_an_example_saves_the_same_image_as_without_the_purge(
    server: Server, home: Path, checkpoint: str, name: str
) -> None:
    graph = _with_stand_ins(_load(f"{name}.api.json"))
    (purge,) = (key for key, of in graph.items() if of["class_type"].startswith("CleanMemory_"))
    (save,) = (key for key, of in graph.items() if of["class_type"] == "SaveImage")
    result = server.run(graph)
    assert result.status == "success", result.error
    assert result.shown_text(purge).startswith("freed ")
    assert _picture(home, result.outputs[save]) == _picture(home, _without(server, graph, purge, save))


def _without(server: Server, graph: Graph, purge: str, save: str) -> dict[str, Any]:
    """The image of the same graph without the purge node."""
    through = [value for name, value in graph[purge]["inputs"].items() if name.startswith("data")]
    for of in graph.values():
        for socket, value in of["inputs"].items():
            if isinstance(value, list) and value[0] == purge:
                of["inputs"][socket] = through[value[1]]
    del graph[purge]
    graph[save]["inputs"]["filename_prefix"] = "without"
    return server.run(graph).outputs[save]


def _picture(home: Path, saved: dict[str, Any]) -> bytes:
    from PIL import Image

    (image,) = saved["images"]
    with Image.open(home / "base" / "output" / image["subfolder"] / image["filename"]) as opened:
        return opened.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_both_formats_of_an_example_are_equivalent(server: Server, name: str) -> None:
    info = server.get("/object_info")
    workflow = _load(f"{name}.json")
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    queued = {}
    for of in workflow["nodes"]:
        inputs = {socket["name"]: links[socket["link"]] for socket in of["inputs"] if socket["link"]}
        values = iter(of["widgets_values"])
        for widget, spec in _widgets(info[of["type"]]):
            if (value := next(values, None)) is None:
                break  # saved before this widget existed: it has its default
            inputs[widget] = value
            if spec.get("control_after_generate"):
                assert next(values) == "fixed"
        queued[str(of["id"])] = {"class_type": of["type"], "inputs": inputs, "_meta": {"title": of["title"]}}
    assert queued == _load(f"{name}.api.json")


def _widgets(info: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The widgets of a node, in the order in which a workflow saves their values."""
    found = []
    for part in ("required", "optional"):
        for name, spec in info["input"].get(part, {}).items():
            if isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                found.append((name, spec[1] if len(spec) > 1 else {}))
    return found
