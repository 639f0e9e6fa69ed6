/** The JSON of a purge, checked: what comes out of here can be drawn without asking again. */

/**
 * @typedef {{name: string, before: number, after: number}} Device  bytes
 * @typedef {{what: string, how: string, nbytes: number | null}} Row  how it went, or why it stayed
 * @typedef {object} Result
 * @property {string} title  the node that purged
 * @property {number} seconds
 * @property {number} freed  bytes, on all devices
 * @property {Device[]} devices
 * @property {Row[]} went
 * @property {Row[]} stayed
 * @property {string[]} broken  nodes that will fail if they run
 */

/**
 * @returns {Result | null} null if it is not the result of a purge, or no version of it that is known here.
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
    went: readRows(data.went, "how"),
    stayed: readRows(data.stayed, "why"),
    broken: listOf(data.broken).filter(isText),
  };
}

/** @returns {string[]} what a purge says in words: all that there is if it has failed. */
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
