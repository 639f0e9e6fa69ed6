/** What the server's history knows of a workflow. */

// As many as the front end asks for itself when it starts.
const PROMPTS = 64;

/**
 * The last output of every node, by workflow and by node. Empty if the server has nothing to say.
 *
 * @returns {Promise<Map<string, Map<string, object>>>}
 */
export async function lastOutputs(api) {
  const workflows = new Map();
  for (const entry of await recentPrompts(api)) {
    const id = entry?.prompt?.[3]?.extra_pnginfo?.workflow?.id;
    if (!id) continue; // queued by a program: there is no canvas that it belongs to
    if (!workflows.has(id)) workflows.set(id, new Map());
    for (const [node, output] of Object.entries(entry.outputs ?? {})) workflows.get(id).set(node, output);
  }
  return workflows;
}

/** The oldest first, as the server gives them. */
async function recentPrompts(api) {
  try {
    const answer = await api.fetchApi(`/history?max_items=${PROMPTS}`);
    return Object.values(await answer.json());
  } catch {
    return []; // the server is gone or says something else: the nodes show nothing until they run
  }
}
