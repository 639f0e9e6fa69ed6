/** The card as a part of a node, on the classic canvas and among the Vue nodes. */

import { drawResult, drawText } from "./card.js";
import { readResult, readText } from "./result.js";
import { element } from "./words.js";

const NAME = "fastpurge";
const MARGIN = 8;
const MIN_WIDTH = 240;

/**
 * Of each node with a card: the card, its height, and the size of the node before room was made for the card,
 * and after.
 *
 * @type {WeakMap<object, {card: HTMLElement, height: number, before: number[], after: number[]}>}
 */
const shown = new WeakMap();

export const hasResult = (node) => shown.has(node);

/** Show an output of a purge on its node. What cannot be read changes nothing. */
export function show(node, output) {
  const result = readResult(output);
  const lines = readText(output);
  if (!result && !lines.length) return;
  const of = shown.get(node) ?? addCard(node);
  of.height = 2 * MARGIN + (result ? drawResult(of.card, result) : drawText(of.card, lines));
  makeRoom(node, of);
  node.setDirtyCanvas?.(true, true);
}

function addCard(node) {
  const card = element("section", { class: "fastpurge-card", "aria-label": "Last purge" });
  const of = { card, height: 0, before: [], after: [] };
  shown.set(node, of);
  keepOutOfTheWorkflow(node, of);
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

/** Make the node as large as it has to be on the classic canvas. A Vue node grows by itself. */
function makeRoom(node, of) {
  if (globalThis.LiteGraph?.vueNodesMode) return;
  of.before = sizeWithout(node, of);
  const [width, height] = of.before;
  node.setSize([Math.max(width, MIN_WIDTH), Math.max(height, node.computeSize()[1])]);
  of.after = [...node.size];
}

/** Save the node as it is without the card, or every first run would count as a change of the workflow. */
function keepOutOfTheWorkflow(node, of) {
  const { onSerialize } = node;
  const hadWidgets = Boolean(node.widgets);
  node.onSerialize = function (saved) {
    onSerialize?.apply(this, arguments);
    saved.size = sizeWithout(this, of);
    if (!hadWidgets && !saved.widgets_values?.length) delete saved.widgets_values;
  };
}

/** The size of a node as its user has left it. */
function sizeWithout(node, { card, before, after }) {
  const [width, height] = node.size;
  const vueNode = card.closest("[data-node-id]");
  if (vueNode) return [width, height - growthOf(vueNode, card)];
  return width === after[0] && height === after[1] ? before : [width, height];
}

function growthOf(vueNode, card) {
  const height = vueNode.offsetHeight;
  const row = card.closest(".lg-node-widget") ?? card; // there is a gap between rows, around an empty one as well
  row.style.display = "none";
  const without = vueNode.offsetHeight;
  row.style.display = "";
  return height - without;
}
