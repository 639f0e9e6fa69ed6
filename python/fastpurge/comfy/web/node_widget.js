/** Adds the card to a node as a DOM widget, on the classic canvas and for Vue nodes. */

import { drawResult, drawText } from "./draw_card.js";
import { readResult, readText } from "./parse_result.js";
import { element } from "./format.js";

const NAME = "fastpurge";
const MARGIN = 8;
const MIN_WIDTH = 240;

/**
 * By node: the card, its height in pixels, and the size of the node before and after it grew for the card.
 *
 * @type {WeakMap<object, {card: HTMLElement, height: number, before: number[], after: number[]}>}
 */
const cards = new WeakMap();

export const hasResult = (node) => cards.has(node);

/** Show the output of a purge on its node. Invalid output is ignored. */
export function show(node, output) {
  const result = readResult(output);
  const lines = readText(output);
  if (!result && !lines.length) return;
  const of = cards.get(node) ?? addCard(node);
  of.height = 2 * MARGIN + (result ? drawResult(of.card, result) : drawText(of.card, lines));
  growNode(node, of);
  node.setDirtyCanvas?.(true, true);
}

function addCard(node) {
  const card = element("section", { class: "fastpurge-card", "aria-label": "Last purge" });
  const of = { card, height: 0, before: [], after: [] };
  cards.set(node, of);
  excludeFromWorkflow(node, of);
  const height = () => of.height;
  const widget = node.addDOMWidget(NAME, NAME, card, {
    serialize: false, // not in the prompt
    margin: MARGIN,
    getMinHeight: height,
    getMaxHeight: height,
  });
  widget.serialize = false; // and not in widgets_values
  return of;
}

/** Enlarge the node for the card on the classic canvas. A Vue node grows by itself. */
function growNode(node, of) {
  if (globalThis.LiteGraph?.vueNodesMode) return;
  of.before = sizeWithout(node, of);
  const [width, height] = of.before;
  node.setSize([Math.max(width, MIN_WIDTH), Math.max(height, node.computeSize()[1])]);
  of.after = [...node.size];
}

/** Save the node without the card, so that a run does not mark the workflow as modified. */
function excludeFromWorkflow(node, of) {
  const { onSerialize } = node;
  const hadWidgets = Boolean(node.widgets);
  node.onSerialize = function (saved) {
    onSerialize?.apply(this, arguments);
    saved.size = sizeWithout(this, of);
    if (!hadWidgets && !saved.widgets_values?.length) delete saved.widgets_values;
  };
}

/** The size of a node without the card. */
function sizeWithout(node, { card, before, after }) {
  const [width, height] = node.size;
  const vueNode = card.closest("[data-node-id]");
  if (vueNode) return [width, height - growthOf(vueNode, card)];
  return width === after[0] && height === after[1] ? before : [width, height];
}

function growthOf(vueNode, card) {
  const height = vueNode.offsetHeight;
  const row = card.closest(".lg-node-widget") ?? card; // the whole row: an empty row still has a gap
  row.style.display = "none";
  const without = vueNode.offsetHeight;
  row.style.display = "";
  return height - without;
}
