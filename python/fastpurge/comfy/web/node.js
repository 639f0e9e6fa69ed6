/** The card as a part of a node, on the classic canvas and among the Vue nodes. */

import { drawResult, drawText } from "./card.js";
import { readResult, readText } from "./result.js";
import { element } from "./words.js";

const NAME = "fastpurge";
const MARGIN = 8;

/** @type {WeakMap<object, {card: HTMLElement, height: number, reserved: number}>} */
const shown = new WeakMap();

export const hasResult = (node) => shown.has(node);

/** Show an output of a purge on its node. What cannot be read changes nothing. */
export function show(node, output) {
  const result = readResult(output);
  const lines = readText(output);
  if (!result && !lines.length) return;
  const of = shown.get(node) ?? addCard(node);
  of.height = 2 * MARGIN + (result ? drawResult(of.card, result) : drawText(of.card, lines));
  reserve(node, of);
  node.setDirtyCanvas?.(true, true);
}

function addCard(node) {
  const of = { card: element("section", { class: "fastpurge-card", "aria-label": "Last purge" }), height: 0, reserved: 0 };
  shown.set(node, of);
  keepOutOfTheWorkflow(node, of);
  const height = () => of.height;
  const widget = node.addDOMWidget(NAME, NAME, of.card, {
    serialize: false, // not in the prompt
    margin: MARGIN,
    getMinHeight: height,
    getMaxHeight: height,
  });
  widget.serialize = false; // and not in widgets_values
  return of;
}

/** Make room on the classic canvas. A Vue node grows by itself. */
function reserve(node, of) {
  if (globalThis.LiteGraph?.vueNodesMode) return;
  const [width, height] = node.size;
  node.setSize([width, height - of.reserved + of.height]);
  of.reserved = of.height;
}

/** Save the node as it is without the card, or every first run would count as a change of the workflow. */
function keepOutOfTheWorkflow(node, of) {
  const { onSerialize } = node;
  const hadWidgets = Boolean(node.widgets);
  node.onSerialize = function (saved) {
    onSerialize?.apply(this, arguments);
    saved.size = [saved.size[0], saved.size[1] - heightOf(of)];
    if (!hadWidgets && !saved.widgets_values?.length) delete saved.widgets_values;
  };
}

/** By how much the card makes its node higher. */
function heightOf({ card, reserved }) {
  const vueNode = card.closest("[data-node-id]");
  if (!vueNode) return reserved;
  const height = vueNode.offsetHeight;
  card.style.display = "none";
  const without = vueNode.offsetHeight;
  card.style.display = "";
  return height - without;
}
