/** Reads node outputs from the server's history. */

// As many as the front end itself requests at startup.
const PROMPTS = 64;

/**
 * The last output of every node, by workflow and by node. Empty if there is no history.
 *
 * @returns {Promise<Map<string, Map<string, object>>>}
 */
export async function lastOutputs(api) {
  const workflows = new Map();
  for (const entry of await recentPrompts(api)) {
    const id = entry?.prompt?.[3]?.extra_pnginfo?.workflow?.id;
    if (!id) continue; // queued by a program, not from a canvas
    if (!workflows.has(id)) workflows.set(id, new Map());
    for (const [node, output] of Object.entries(entry.outputs ?? {})) workflows.get(id).set(node, output);
  }
  return workflows;
}

/** The history entries, the oldest first, as the server sends them. */
async function recentPrompts(api) {
  try {
    const answer = await api.fetchApi(`/history?max_items=${PROMPTS}`);
    return Object.values(await answer.json());
  } catch {
    return []; // no server, or not JSON: nodes show nothing until they run
  }
}
