/** The tables behind a card: what went, what stayed, and why. */

import { bytes, duration, element } from "./words.js";

/** Open a dialog over the canvas: long names need more room than a node has, at whatever zoom. */
export function openDetails(result) {
  const dialog = drawDialog(result);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // on the backdrop
  });
  // The canvas has shortcuts on keys that mean something else in a dialog. Escape closes it all the same.
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

function drawSummary({ freed, seconds, broken }) {
  const summary = element("p", {}, `Freed ${bytes(freed)} in ${duration(seconds)}, as measured.`);
  if (broken.length) {
    summary.append(element("strong", {}, ` Unprotected, and will fail if they run: ${broken.join(", ")}.`));
  }
  return summary;
}

function drawTables({ went, stayed }) {
  return [drawTable("What went", "How", went), drawTable("What stayed", "Why", stayed)];
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
