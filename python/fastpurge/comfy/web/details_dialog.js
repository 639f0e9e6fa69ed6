/** The dialog with two tables: what was freed and how, what was kept and why. */

import { bytes, duration, element } from "./format.js";

/** Open the dialog. Long names do not fit on a node. */
export function openDetails(result) {
  const dialog = drawDialog(result);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // a click on the backdrop
  });
  // Keep keys from the shortcuts of the canvas. Escape still closes the dialog.
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  document.body.append(dialog);
  dialog.showModal();
}

function drawDialog(result) {
  const heading = element("h2", { id: "fastpurge-heading" }, result.title || "Purge");
  return element(
    "dialog",
    { class: "fastpurge-details", "aria-labelledby": heading.id },
    element("article", {}, element("header", {}, heading, drawClose()), drawSummary(result), ...drawTables(result)),
  );
}

function drawClose() {
  const form = element("form", { method: "dialog" });
  form.append(element("button", { "aria-label": "Close" }, "✕"));
  return form;
}

function drawSummary({ freed, seconds, failingNodes }) {
  const summary = element("p", {}, `Freed ${bytes(freed)} in ${duration(seconds)}, as measured.`);
  if (failingNodes.length) {
    summary.append(element("strong", {}, ` Not protected, will fail if run: ${failingNodes.join(", ")}.`));
  }
  return summary;
}

function drawTables({ freedRows, keptRows }) {
  return [drawTable("Freed", "How", freedRows), drawTable("Kept", "Why", keptRows)];
}

function drawTable(caption, reason, rows) {
  return element(
    "table",
    {},
    element("caption", {}, rows.length ? caption : `${caption}: nothing`),
    ...(rows.length ? [drawHead("What", reason, "Size"), element("tbody", {}, ...rows.map(drawRow))] : []),
  );
}

function drawHead(...names) {
  const cells = names.map((name) => element("th", { scope: "col" }, name));
  return element("thead", {}, element("tr", {}, ...cells));
}

function drawRow({ what, how, nbytes }) {
  const size = nbytes === null ? "" : bytes(nbytes);
  return element("tr", {}, element("td", {}, what), element("td", {}, how), element("td", {}, size));
}
