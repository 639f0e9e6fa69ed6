/**
 * What a purge did, drawn on the node that did it: this file says when, the others say what and how.
 *
 * Three ways lead to a result. A node that has just run is told by the front end, and so is a workflow whose
 * tab is opened again. After a reload of the page the front end knows of no results any more, so they are
 * asked of the server, once: its history is where they are kept anyway, it ends with the process whose memory
 * they tell of, and nothing has to be written into the workflow, which would count as changed by every run.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { lastOutputs } from "./history.js";
import { hasResult, show } from "./node.js";

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
      history = undefined; // there is more of it now
      show(this, output);
    };
  },

  afterConfigureGraph() {
    void fillFromHistory(app.graph);
  },

  // By the front end's addresses, or by the server's, which it keeps of a workflow whose tab is opened again.
  onNodeOutputsUpdated(outputs) {
    const paths = new Map(everyNode(app.graph));
    for (const [address, output] of Object.entries(outputs ?? {})) {
      const node = nodeAt(app.graph, address) ?? paths.get(address);
      if (isOurs(node)) show(node, output);
    }
  },
});

let history;

/** Show what the server remembers on the nodes that show nothing yet: what is there is newer. */
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

/** Every node with the path by which the server knows it: "4", or "7:4" inside the subgraph of node 7. */
function everyNode(graph, prefix = "") {
  return graph.nodes.flatMap((node) => {
    const path = `${prefix}${node.id}`;
    return [[path, node], ...(node.subgraph ? everyNode(node.subgraph, `${path}:`) : [])];
  });
}

/** The node at one of the front end's own addresses: "4", or "uuid-of-a-subgraph:4". */
function nodeAt(graph, locator) {
  const [id, subgraph] = locator.split(":").reverse();
  return (subgraph ? graph.subgraphs?.get(subgraph) : graph)?.getNodeById(id);
}
