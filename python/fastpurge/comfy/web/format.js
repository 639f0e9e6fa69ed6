/** Formats sizes and durations, and creates DOM elements. */

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
 * Create an element with attributes and content. Strings become text nodes, never markup: names of nodes, models
 * and files come from others.
 */
export function element(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}
