/** Figures and elements, as a person reads them. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** @returns {string} such as "1.5 GiB". */
export function bytes(count) {
  const power = Math.min(Math.floor(Math.log2(Math.max(count, 1)) / 10), UNITS.length - 1);
  const value = count / 1024 ** power;
  return `${value.toFixed(power && value < 10 ? 1 : 0)} ${UNITS[power]}`;
}

/** @returns {string} such as "45 ms" or "1.3 s". */
export function duration(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}

/**
 * An element with attributes and content. A string becomes text and never markup: what is shown are names that
 * others have given, of nodes, models and files.
 */
export function element(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}
