/** Validates the JSON of a purge, so that the drawing code need not check it. */

/**
 * @typedef {{name: string, before: number, after: number}} Device  bytes
 * @typedef {{what: string, how: string, nbytes: number | null}} Row  how it was freed, or why it was kept
 * @typedef {object} Result
 * @property {string} title  of the purge node
 * @property {number} seconds
 * @property {number} freed  bytes, on all devices
 * @property {Device[]} devices
 * @property {Row[]} freedRows
 * @property {Row[]} keptRows
 * @property {string[]} failingNodes  titles of nodes that will fail if they run
 */

/**
 * @returns {Result | null} null if it is not the result of a purge.
 */
export function readResult(output) {
  const data = output?.fastpurge?.[0];
  const devices = readDevices(data?.before, data?.after);
  if (!devices.length || !isSize(data.seconds)) return null;
  return {
    title: isText(data.label) ? data.label : "",
    seconds: data.seconds,
    freed: sum(Object.values(data.freed_by_device ?? {}).filter(isSize)),
    devices,
    freedRows: readRows(data.went, "how"),
    keptRows: readRows(data.stayed, "why"),
    failingNodes: listOf(data.broken).filter(isText),
  };
}

/** @returns {string[]} the text of a purge; a failed purge has only text. */
export function readText(output) {
  return listOf(output?.text).filter(isText);
}

function readDevices(before, after) {
  const names = Object.keys(before ?? {}).filter((name) => isSize(before[name]) && isSize(after?.[name]));
  return names.map((name) => ({
    name: nameOf(name, names),
    before: before[name],
    after: after[name],
  }));
}

function nameOf(device, all) {
  if (device === "cpu") return "RAM";
  return all.length > 2 ? `VRAM ${device}` : "VRAM";
}

function readRows(rows, reason) {
  return listOf(rows)
    .filter((row) => isText(row?.what))
    .map((row) => ({
      what: row.what,
      how: isText(row[reason]) ? row[reason] : "",
      nbytes: isSize(row.nbytes) ? row.nbytes : null,
    }));
}

const isSize = (value) => Number.isFinite(value) && value >= 0;
const isText = (value) => typeof value === "string";
const listOf = (value) => (Array.isArray(value) ? value : []);
const sum = (values) => values.reduce((total, one) => total + one, 0);
