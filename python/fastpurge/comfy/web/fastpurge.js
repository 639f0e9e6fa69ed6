/**
 * The extension that shows the result of a purge on its node. This file decides when; the others draw.
 *
 * Results come from three places. The front end calls `onExecuted` when a node has run, and
 * `onNodeOutputsUpdated` when the tab of a workflow is opened again. After a reload of the page it has no
 * results, so they are read from the server's history, once. The history ends with the process whose memory
 * the results describe, and nothing is saved in the workflow, so a run does not mark it as modified.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { lastOutputs } from "./server_history.js";
import { hasResult, show } from "./node_widget.js";

const CATEGORY = "fastpurge";

app.registerExtension({
  name: "fastpurge.canvas",

  setup() {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("./fastpurge.css", import.meta.url).href;
    document.head.append(style);
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.category !== CATEGORY) return;
    const { onExecuted } = nodeType.prototype;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      history = undefined; // outdated by this run
      show(this, output);
    };
  },

  afterConfigureGraph() {
    void fillFromHistory(app.graph);
  },

  // Keys are locators of the front end, or node paths of the server when a tab is opened again.
  onNodeOutputsUpdated(outputs) {
    const paths = new Map(everyNode(app.graph));
    for (const [key, output] of Object.entries(outputs ?? {})) {
      const node = nodeAt(app.graph, key) ?? paths.get(key);
      if (isOurs(node)) show(node, output);
    }
  },
});

let history;

/** Show results from the server's history on nodes without a result; existing results are newer. */
async function fillFromHistory(graph) {
  if (!everyNode(graph).some(([, node]) => isOurs(node))) return;
  history ??= lastOutputs(api);
  const outputs = (await history).get(graph.id);
  for (const [path, node] of everyNode(graph)) {
    if (isOurs(node) && !hasResult(node) && outputs?.has(path)) show(node, outputs.get(path));
  }
}

function isOurs(node) {
  return node?.constructor?.nodeData?.category === CATEGORY;
}

/** Every node with its path on the server: "4", or "7:4" inside the subgraph of node 7. */
function everyNode(graph, prefix = "") {
  return graph.nodes.flatMap((node) => {
    const path = `${prefix}${node.id}`;
    return [[path, node], ...(node.subgraph ? everyNode(node.subgraph, `${path}:`) : [])];
  });
}

/** The node at a locator of the front end: "4", or "uuid-of-a-subgraph:4". */
function nodeAt(graph, locator) {
  const [id, subgraph] = locator.split(":").reverse();
  return (subgraph ? graph.subgraphs?.get(subgraph) : graph)?.getNodeById(id);
}
