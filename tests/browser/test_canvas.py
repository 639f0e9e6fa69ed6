"""Results on the canvas, with classic and Vue nodes, in both themes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.comfyui.graphs import PURGES, node

from .canvas import EXAMPLES, Canvas

if TYPE_CHECKING:
    from tests.comfyui.comfyui_process import Server

# Session scope, so that pytest groups the tests by it: changing the setting reloads the page.
BOTH = pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"], scope="session")
PURGE = "CleanMemory_PurgePass"
SIZE = r"[\d.]+ [KMG]iB"
RESULT: dict[str, Any] = {
    "label": "a purge",
    "seconds": 1.25,
    "before": {"cpu": 3 << 30},
    "after": {"cpu": 1 << 30},
    "freed_by_device": {"cpu": 2 << 30},
}


def leak_and_keep(server: Server) -> None:
    """Leak 256 MiB, keep an image in another node, and empty the cache."""
    graph = {
        "noise": node("Noise", seed=0, megapixels=1),
        "leak": node("Leak", image=("noise", 0), mebibytes=256),
        "end": node("Digest", image=("leak", 0)),
        "shelf": node("Shelf", name="kept", megapixels=2),
        "other": node("Digest", image=("shelf", 0)),
    }
    assert "leak" in server.run(graph).ran
    server.post("/free", {"free_memory": True})


@BOTH
@pytest.mark.parametrize("palette", ["dark", "light"])
def test_a_node_shows_what_was_freed_and_what_was_kept(
    server: Server, canvas: Canvas, pictures: Path | None, vue: bool, palette: str
) -> None:
    leak_and_keep(server)
    canvas.open(vue=vue, palette=palette)
    canvas.load(EXAMPLES / "image_batches.json")
    assert canvas.card().count() == 0
    canvas.run()
    canvas.fit()
    card = canvas.card()
    card.wait_for()
    said = card.inner_text()
    assert re.search(rf"Freed {SIZE}\s+[\d.]+ m?s\b", said)
    bars = card.get_by_role("img")
    assert re.fullmatch(rf"RAM: {SIZE} before, {SIZE} after", bars.get_attribute("aria-label") or "")
    before, after = (bars.locator(f".fastpurge-{when}").bounding_box() for when in ("before", "after"))
    assert before is not None
    assert after is not None
    assert 0 < after["width"] < before["width"]
    assert contrast(canvas, ".fastpurge-card") > 4.5
    if pictures and not vue:
        canvas.screenshot(pictures / f"canvas-{palette}.png", of=["ImageScale", PURGE, "SaveImage"])
    with canvas.details("Purge & Pass") as details:
        went, stayed = details.get_by_role("table").all()
        assert went.get_by_role("columnheader").all_inner_texts() == ["What", "How", "Size"]
        what, how, size = cells(went)[0]
        assert (what, size) == ("float32 Tensor of shape (67108864,) on cpu", "256 MiB")
        assert re.fullmatch(r"released; owner: .*\.leaked\.all\[\d+\]", how)
        assert stayed.get_by_role("columnheader").all_inner_texts() == ["What", "Why", "Size"]
        kept = next(row for row in cells(stayed) if row[0] == "fastpurge_tests.storage.IMAGES")
        assert kept[1] == "its node pack keeps it"
        assert re.fullmatch(SIZE, kept[2])
        assert contrast(canvas, ".fastpurge-details") > 4.5
        if pictures and not vue:
            canvas.screenshot(pictures / f"canvas-{palette}-details.png")


def cells(table: Any) -> list[list[str]]:
    rows = table.locator("tbody").get_by_role("row").all()
    return [row.get_by_role("cell").all_inner_texts() for row in rows]


def contrast(canvas: Canvas, selector: str) -> float:
    """The contrast ratio of text to background; WCAG 2 requires 4.5."""
    styles = canvas.styles(selector, ["color", "background-color"])
    light, dark = sorted((luminance(value) for value in styles.values()), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()]  # type: ignore[union-attr]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@BOTH
def test_results_are_not_saved_in_the_workflow(server: Server, canvas: Canvas, vue: bool) -> None:
    server.post("/free", {"free_memory": True})
    canvas.open(vue=vue)
    canvas.load(EXAMPLES / "image_batches.json")
    canvas.wait_until_resized(PURGE)
    saved, prompt = canvas.saved(PURGE), canvas.prompt()
    canvas.run()
    canvas.card().wait_for()
    canvas.wait_until_resized(PURGE)
    assert canvas.saved(PURGE) == saved
    assert saved["widgets_values"] == ["RAM", True, 0]
    assert canvas.prompt() == prompt
    if not vue:  # other Vue nodes change their size when they have run
        assert not canvas.page.evaluate("app.extensionManager.workflow.activeWorkflow.isModified")


@BOTH
@pytest.mark.parametrize("values", [["VRAM"], ["VRAM", False], ["VRAM", False, 80]])
def test_an_older_workflow_gets_the_defaults_of_newer_widgets(
    canvas: Canvas, tmp_path: Path, values: list[Any], vue: bool
) -> None:
    workflow = json.loads((EXAMPLES / "image_batches.json").read_text(encoding="utf-8"))
    (purge,) = (of for of in workflow["nodes"] if of["type"] == PURGE)
    purge["widgets_values"] = values
    (tmp_path / "saved.json").write_text(json.dumps(workflow))
    canvas.open(vue=vue)
    canvas.load(tmp_path / "saved.json")
    inputs = canvas.prompt()[str(purge["id"])]["inputs"]
    expected = [*values, *["VRAM", True, 0][len(values) :]]
    assert [inputs[name] for name in ("mode", "protect_pending", "only_above")] == expected


@BOTH
def test_a_skipped_purge_shows_the_reason(canvas: Canvas, vue: bool) -> None:
    canvas.open(vue=vue)
    canvas.add_node("CleanMemory_PurgeRAM", only_above=99)
    canvas.run()
    canvas.fit()
    canvas.card().wait_for()
    assert re.fullmatch(r"RAM is at \d+%: not above 99%, nothing purged", canvas.card().inner_text())
    assert_fits(canvas)


@BOTH
def test_each_of_the_six_nodes_shows_its_result(server: Server, canvas: Canvas, vue: bool) -> None:
    server.post("/free", {"free_memory": True})
    canvas.open(vue=vue)
    noise = canvas.add_node("FPT_Noise", megapixels=1)
    kinds = {purge(("x", 0))["class_type"] for purge in PURGES.values()}
    for kind in kinds:
        purge = canvas.add_node(kind, noise)
        if "Pass" in kind:
            canvas.add_node("FPT_Digest", purge)
    canvas.run()
    canvas.fit()
    canvas.card().nth(len(kinds) - 1).wait_for()
    assert len(kinds) == canvas.card().count() == 6
    assert_fits(canvas)


@BOTH
def test_the_last_result_is_shown_after_a_reload(canvas: Canvas, vue: bool) -> None:
    canvas.open(vue=vue)
    canvas.load(EXAMPLES / "end_of_workflow.json")
    canvas.run()
    canvas.card().wait_for()
    said = canvas.card().inner_text()
    canvas.reload()
    canvas.card().wait_for()
    assert canvas.card().inner_text() == said


def test_the_result_is_shown_when_a_tab_is_reopened(canvas: Canvas) -> None:
    canvas.open()
    canvas.load(EXAMPLES / "end_of_workflow.json")
    canvas.run()
    canvas.card().wait_for()
    said = canvas.card().inner_text()
    canvas.load(EXAMPLES / "heavy_loading.json")
    canvas.card().wait_for(state="detached")
    canvas.page.locator(".workflow-tab", has_text="end_of_workflow").last.click()
    canvas.card().wait_for()
    assert canvas.card().inner_text() == said


def test_a_result_in_a_subgraph_is_shown_after_a_reload(canvas: Canvas) -> None:
    canvas.open()
    canvas.add_node("CleanMemory_PurgeVRAM", canvas.add_node("FPT_Noise", megapixels=1))
    canvas.page.evaluate("app.graph.convertToSubgraph(new Set(app.graph.nodes))")
    canvas.run()
    for _ in range(2):
        canvas.page.evaluate("app.canvas.setGraph(app.graph.nodes[0].subgraph)")
        canvas.fit()
        canvas.card().wait_for()
        canvas.reload()


def test_a_result_in_a_subgraph_is_shown_when_its_tab_is_reopened(canvas: Canvas) -> None:
    canvas.open()
    canvas.add_node("CleanMemory_PurgeVRAM", canvas.add_node("FPT_Noise", megapixels=1))
    canvas.page.evaluate("app.graph.convertToSubgraph(new Set(app.graph.nodes))")
    canvas.run()
    outputs = canvas.page.evaluate(
        """async () => {
            const [outer] = app.graph.nodes;
            const inner = outer.subgraph.nodes.find((node) => node.type.startsWith("CleanMemory"));
            const cards = () => inner.widgets.filter((widget) => widget.name === "fastpurge");
            // As the front end does for a reopened tab: with the node paths of the server.
            const result = { seconds: 1, before: { cpu: 3 }, after: { cpu: 2 } };
            const kept = { [`${outer.id}:${inner.id}`]: { fastpurge: [result] } };
            for (const extension of app.extensions) extension.onNodeOutputsUpdated?.(kept);
            return cards().map((card) => card.element.textContent);
        }"""
    )
    assert len(outputs) == 1
    assert "3 B" in outputs[0]


def test_every_device_has_a_pair_of_bars(canvas: Canvas) -> None:
    for devices, names in (
        (["cpu"], ["RAM"]),
        (["cpu", "cuda:0"], ["RAM", "VRAM"]),
        (["cpu", "cuda:0", "cuda:1"], ["RAM", "VRAM cuda:0", "VRAM cuda:1"]),
    ):
        memory = {"before": dict.fromkeys(devices, 3 << 30), "after": dict.fromkeys(devices, 1 << 30)}
        show_outputs(canvas, {"fastpurge": [{**RESULT, **memory}]})
        canvas.card().wait_for()
        labels = [bar.get_attribute("aria-label") for bar in canvas.card().get_by_role("img").all()]
        assert labels == [f"{name}: 3.0 GiB before, 1.0 GiB after" for name in names]
        assert_fits(canvas)


def assert_fits(canvas: Canvas) -> None:
    """Assert that no content of a card is cut off."""
    cut = """(cards) => cards
        .filter((card) => card.scrollHeight > card.clientHeight || card.scrollWidth > card.clientWidth)
        .map((card) => card.innerText)"""
    assert canvas.card().evaluate_all(cut) == []


MALFORMED: list[Any] = [
    {},
    {"fastpurge": []},
    {"fastpurge": "text"},
    {"fastpurge": [None]},
    {"fastpurge": [5]},
    {"fastpurge": [[]]},
    {"fastpurge": [{}]},
    {"fastpurge": [{**RESULT, "seconds": "long"}]},
    {"fastpurge": [{**RESULT, "seconds": None}]},
    {"fastpurge": [{**RESULT, "before": None}]},
    {"fastpurge": [{**RESULT, "before": "text"}]},
    {"fastpurge": [{**RESULT, "before": {"cpu": -1}}]},
    {"fastpurge": [{**RESULT, "after": {}}]},
    {"fastpurge": [{**RESULT, "after": {"cuda:0": 5}}]},
    {"text": [5, None]},
]
ODD: dict[str, Any] = {
    "went": 5,
    "stayed": [None, 5, {}, {"what": 5}],
    "broken": {},
    "freed_by_device": None,
    "label": 5,
}


def test_malformed_results_are_ignored_without_an_error(canvas: Canvas) -> None:
    show_outputs(canvas, *MALFORMED)
    assert canvas.card().count() == 0
    show_outputs(canvas, {"fastpurge": [{**RESULT, **ODD}]})
    with canvas.details("Purge") as details:
        captions = details.locator("caption").all_inner_texts()
    assert captions == ["Freed: nothing", "Kept: nothing"]


def test_a_malformed_history_is_ignored(canvas: Canvas) -> None:
    canvas.open()
    sizes = canvas.page.evaluate(
        """async () => {
            const { lastOutputs } = await import("/extensions/fastpurge/server_history.js");
            const prompt = [0, "", {}, { extra_pnginfo: { workflow: { id: "w" } } }];
            const odd = JSON.stringify({ a: { prompt, outputs: 5 } });
            const answers = ["", "null", "[]", "5", '{"a": null}', '{"a": {"outputs": {}}}', odd];
            const found = answers.map((text) => lastOutputs({ fetchApi: async () => new Response(text) }));
            found.push(lastOutputs({ fetchApi: async () => { throw new TypeError("no network"); } }));
            return (await Promise.all(found)).map((outputs) => outputs.size);
        }"""
    )
    assert sizes == [0, 0, 0, 0, 0, 0, 1, 0]  # the last but one has a workflow, but no nodes


def test_names_are_shown_as_text_and_never_as_markup(canvas: Canvas) -> None:
    name = '<img src="x" onerror="window.harmed = true">'
    rows = {"went": [{"what": name, "how": name}], "stayed": [{"what": name, "why": name}]}
    show_outputs(canvas, {"fastpurge": [{**RESULT, **rows, "label": name, "broken": [name]}]})
    with canvas.details(name) as details:
        assert details.inner_text().count(name) == 6
    assert canvas.card().inner_text().count(name) == 1
    assert canvas.page.evaluate("window.harmed") is None


def test_a_failed_purge_shows_the_error(canvas: Canvas) -> None:
    show_outputs(canvas, {"text": ["failed: out of luck"], "fastpurge": []})
    canvas.card().wait_for()
    assert canvas.card().inner_text() == "failed: out of luck"


@BOTH
def test_a_report_shows_the_free_memory(canvas: Canvas, vue: bool) -> None:
    canvas.open(vue=vue)
    canvas.add_node("FastPurge_MemoryReport")
    canvas.run()
    canvas.fit()
    canvas.card().wait_for()
    free, live = canvas.card().inner_text().splitlines()
    assert re.fullmatch(r"free: [\d.]+ GiB RAM", free)
    assert re.fullmatch(rf"{SIZE} in [\d,]+ live tensors and arrays", live)


def test_the_details_can_be_opened_with_the_keyboard(canvas: Canvas) -> None:
    show_outputs(canvas, {"fastpurge": [RESULT]})
    button = canvas.card().get_by_role("button", name="Details")
    button.focus()
    canvas.page.keyboard.press("Enter")
    canvas.page.get_by_role("dialog", name="a purge").wait_for()
    canvas.page.keyboard.press("Escape")
    canvas.page.get_by_role("dialog").wait_for(state="detached")
    assert button.evaluate("(element) => element === document.activeElement")


def show_outputs(canvas: Canvas, *outputs: Any) -> None:
    """Run nodes that show these outputs."""
    canvas.open()
    for output in outputs:
        canvas.add_node("FPT_Say", output=json.dumps(output))
    canvas.run()
    canvas.fit()
