/** The card on a node: what was freed, and a pair of bars for each device. */

import { openDetails } from "./details.js";
import { bytes, duration, element } from "./words.js";

// The heights of the parts in fastpurge.css: the classic canvas has to be told how much room to leave.
const PADDING = 14;
const HEADLINE = 24;
const LINE = 18;
const DEVICE = 36;
const LINES_OF_TEXT = 3;

/** Draw a result, and say how high that is in pixels. */
export function drawResult(card, result) {
  const warning = result.broken.length ? [drawWarning(result.broken)] : [];
  card.replaceChildren(drawHeadline(result), ...warning, ...result.devices.map(drawDevice));
  return PADDING + HEADLINE + LINE * warning.length + DEVICE * result.devices.length;
}

/** Write what there is in words, and say how high that is in pixels. */
export function drawText(card, lines) {
  card.replaceChildren(element("p", { class: "fastpurge-text" }, lines.join("\n")));
  return PADDING + LINE * LINES_OF_TEXT;
}

function drawHeadline(result) {
  const button = element("button", { type: "button", "aria-haspopup": "dialog" }, "Details");
  button.addEventListener("click", () => openDetails(result));
  // A press that reaches the node would start to drag it.
  button.addEventListener("pointerdown", (event) => event.stopPropagation());
  return element(
    "header",
    {},
    element("strong", {}, headline(result)),
    element("span", { class: "fastpurge-time" }, duration(result.seconds)),
    button,
  );
}

function headline({ freed, went }) {
  return freed || went.length ? `Freed ${bytes(freed)}` : "Nothing to free";
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
