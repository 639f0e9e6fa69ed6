"""Drives ComfyUI's front end in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.comfyui.comfyui_process import PATIENCE, REPOSITORY, Server

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page

EXAMPLES = REPOSITORY / "examples" / "comfyui"
CARD = ".fastpurge-card"

# Otherwise a tour starts, and a map covers a part of the canvas.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}

# Console errors of the front end in a fresh ComfyUI without a network: text and URL.
NOISE = [
    re.compile(pattern)
    for pattern in (
        r"^Failed to load resource: .* https://(api\.comfy\.org|[a-z.]*\.?googleapis\.com)/",
        r"^Failed to load resource: .* 404 .*/(api/userdata[/?].*|user\.css|favicon\.ico)$",
        r"^TypeError: Cannot read properties of undefined \(reading 'id'\)\n +at onChange \(\S+/assets/",
        # a subgraph that is opened by a call and not by its button
        r"^Attempted to cleanup event listeners for graph that was never set up \S+/assets/GraphView-",
    )
]


class Canvas:
    """A page with the front end, and its console errors."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.console_errors: list[str] = []
        self._server = server
        self._is_vue: bool | None = None
        page.set_default_timeout(PATIENCE * 250)
        page.on("console", self._record_console)
        page.on("pageerror", lambda error: self.console_errors.append(str(error)))

    def _record_console(self, message: ConsoleMessage) -> None:
        said = f"{message.text} {message.location.get('url', '')}"
        is_ours = "/extensions/fastpurge/" in said
        if is_ours or (message.type == "error" and not any(noise.search(said) for noise in NOISE)):
            self.console_errors.append(f"{message.type}: {said}")

    def open(self, *, vue: bool | None = None, palette: str = "dark") -> None:
        """Open a new workflow with Vue or classic nodes (None: either), in a theme."""
        if self._is_vue is None or vue not in (None, self._is_vue):
            vue = bool(vue)
            # The server stores the settings of the user.
            self._server.post("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": vue})
            self.page.goto(self._server.url)
            self._wait_until_up()
            self._is_vue = vue
        self.page.evaluate(
            "palette => app.extensionManager.setting.set('Comfy.ColorPalette', palette)", palette
        )
        self.page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        self.page.wait_for_function("!app.graph.nodes.length")

    def reload(self) -> None:
        self.page.reload()
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        self.page.wait_for_function("window.app?.vueAppReady && app.graph?.nodes.length >= 0")

    def load(self, workflow: Path) -> None:
        """Open a workflow from a file."""
        kinds = [node["type"] for node in json.loads(workflow.read_text(encoding="utf-8"))["nodes"]]
        self.page.set_input_files("#comfy-file-input", workflow)
        self.page.wait_for_function(
            "kinds => JSON.stringify(app.graph.nodes.map((node) => node.type)) === JSON.stringify(kinds)",
            arg=kinds,
        )

    def wait_until_resized(self, kind: str) -> None:
        """Wait until Vue nodes have grown to fit their widgets, and the graph has the new sizes."""
        self.page.wait_for_function(
            """kind => app.graph.nodes.filter((node) => node.type === kind).every((node) => {
                const height = document.querySelector(`[data-node-id="${node.id}"]`)?.offsetHeight;
                return !height || height === Math.round(node.size[1]) + LiteGraph.NODE_TITLE_HEIGHT;
            })""",
            arg=kind,
        )

    def add_node(self, kind: str, *sources: int, **widgets: Any) -> int:
        """Add a node whose inputs are wired to the first outputs of the source nodes; return its id."""
        made: int = self.page.evaluate(
            """([kind, sources, widgets]) => {
                const node = LiteGraph.createNode(kind);
                node.pos = [app.graph.nodes.length % 6 * 300, Math.floor(app.graph.nodes.length / 6) * 300];
                for (const widget of node.widgets ?? []) widget.value = widgets[widget.name] ?? widget.value;
                app.graph.add(node);
                sources.forEach((id, socket) => app.graph.getNodeById(id).connect(0, node, socket));
                return node.id;
            }""",
            [kind, list(sources), widgets],
        )
        return made

    def run(self) -> None:
        """Queue the workflow with its keyboard shortcut, and wait until it has run."""
        self.page.evaluate(
            """() => { window.hasRun = false; for (const end of ["execution_success", "execution_error"])
                app.api.addEventListener(end, (event) => { window.hasRun = event.type; }); }"""
        )
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_function("window.hasRun")
        assert self.page.evaluate("window.hasRun") == "execution_success"

    def fit(self) -> None:
        """Zoom and scroll so that all nodes are visible between the toolbars."""
        self.page.evaluate(
            """() => {
                const { ds, graph } = app.canvas;
                const of = (at) => [
                    Math.min(...graph.nodes.map((node) => node.pos[at])),
                    Math.max(...graph.nodes.map((node) => node.pos[at] + node.size[at])),
                ];
                const [[left, right], [top, bottom]] = [of(0), of(1)];
                ds.scale = Math.min(1, 1160 / (right - left), 520 / (bottom - top));
                ds.offset = [90 / ds.scale - left, 250 / ds.scale - top];
                app.canvas.setDirty(true, true);
            }"""
        )

    def card(self) -> Locator:
        return self.page.locator(CARD)

    @contextmanager
    def details(self, name: str) -> Iterator[Locator]:
        """Open the details dialog of the only card, and close it afterwards."""
        self.card().get_by_role("button", name="Details").click()
        dialog = self.page.get_by_role("dialog", name=name)
        yield dialog
        self.page.keyboard.press("Escape")
        dialog.wait_for(state="detached")

    def saved(self, kind: str) -> Any:
        """A node as the workflow saves it, without its position, which Vue nodes measure on the screen."""
        node = self.page.evaluate(
            "kind => app.graph.nodes.find((node) => node.type === kind).serialize()", kind
        )
        del node["pos"]
        return node

    def prompt(self) -> Any:
        """The prompt that would be queued."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def styles(self, selector: str, names: Iterable[str]) -> dict[str, str]:
        """Computed styles of an element."""
        found: dict[str, str] = self.page.evaluate(
            """([selector, names]) => {
                const styles = getComputedStyle(document.querySelector(selector));
                return Object.fromEntries(names.map((name) => [name, styles.getPropertyValue(name)]));
            }""",
            [selector, list(names)],
        )
        return found

    def screenshot(self, picture: Path, of: Iterable[str] = ()) -> None:
        """Save a screenshot of nodes, or of the open dialog, with a margin of 20 pixels."""
        from PIL import Image

        self.page.wait_for_timeout(500)  # toasts disappear and wires are redrawn
        box = self.page.get_by_role("dialog").bounding_box() if not of else self._box_of(of)
        assert box is not None
        clip = {
            "x": box["x"] - 20,
            "y": box["y"] - 20,
            "width": box["width"] + 40,
            "height": box["height"] + 40,
        }
        self.page.screenshot(path=picture, clip=clip)
        with Image.open(picture) as image:
            image.convert("RGB").quantize(128).save(picture, optimize=True)

    def _box_of(self, kinds: Iterable[str]) -> dict[str, float]:
        """The bounding box of nodes on the page, in pixels."""
        box: dict[str, float] = self.page.evaluate(
            """(kinds) => {
                const { ds, graph, canvas } = app.canvas;
                const nodes = graph.nodes.filter((node) => kinds.includes(node.type));
                const edge = (most, at, side) => most(...nodes.map((node) => node.pos[at] + side(node)));
                const place = (value, at) => (value + ds.offset[at]) * ds.scale;
                const left = place(edge(Math.min, 0, () => 0), 0);
                const right = place(edge(Math.max, 0, (node) => node.size[0]), 0);
                const top = place(edge(Math.min, 1, () => -LiteGraph.NODE_TITLE_HEIGHT), 1);
                const bottom = place(edge(Math.max, 1, (node) => node.size[1]), 1);
                const { x, y } = canvas.getBoundingClientRect();
                return { x: x + left, y: y + top, width: right - left, height: bottom - top };
            }""",
            list(kinds),
        )
        return box
