/** Draws the card on a node: the freed bytes, and a pair of bars for each device. */

import { openDetails } from "./details_dialog.js";
import { bytes, duration, element } from "./format.js";

// Heights in pixels, as in fastpurge.css: the classic canvas needs the height of the card.
const PADDING = 14;
const HEADLINE = 24;
const LINE = 18;
const DEVICE = 36;
const LINES_OF_TEXT = 3;

/** Draw a result into the card. @returns {number} its height in pixels. */
export function drawResult(card, result) {
  const warning = result.failingNodes.length ? [drawWarning(result.failingNodes)] : [];
  card.replaceChildren(drawHeadline(result), ...warning, ...result.devices.map(drawDevice));
  return PADDING + HEADLINE + LINE * warning.length + DEVICE * result.devices.length;
}

/** Draw lines of text into the card. @returns {number} its height in pixels. */
export function drawText(card, lines) {
  card.replaceChildren(element("p", { class: "fastpurge-text" }, lines.join("\n")));
  return PADDING + LINE * LINES_OF_TEXT;
}

function drawHeadline(result) {
  const button = element("button", { type: "button", "aria-haspopup": "dialog" }, "Details");
  button.addEventListener("click", () => openDetails(result));
  // Without this, pressing the button would start to drag the node.
  button.addEventListener("pointerdown", (event) => event.stopPropagation());
  return element(
    "header",
    {},
    element("strong", {}, headline(result)),
    element("span", { class: "fastpurge-time" }, duration(result.seconds)),
    button,
  );
}

function headline({ freed, freedRows }) {
  return freed || freedRows.length ? `Freed ${bytes(freed)}` : "Nothing to free";
}

function drawWarning(titles) {
  return element("p", { class: "fastpurge-warning", role: "alert" }, `⚠ Will fail if run: ${titles.join(", ")}`);
}

function drawDevice({ name, before, after }) {
  const most = Math.max(before, after, 1);
  const figures = `${bytes(before)} → ${bytes(after)}`;
  return element(
    "div",
    { class: "fastpurge-device", role: "img", "aria-label": `${name}: ${bytes(before)} before, ${bytes(after)} after` },
    element("span", {}, name),
    element("span", { class: "fastpurge-figures" }, figures),
    drawBar("before", before / most),
    drawBar("after", after / most),
  );
}

function drawBar(when, share) {
  return element("i", { class: `fastpurge-${when}`, style: `--share: ${share}` });
}
