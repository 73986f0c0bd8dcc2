// The server's HTTP interface, as this page needs it. Paths are relative: a proxy may serve us below a prefix.

const KEY = "mu2net-key"; // of this tab only: gone when it is closed

export function setKey(text) {
  if (text) sessionStorage.setItem(KEY, text);
  else sessionStorage.removeItem(KEY);
}

/** Take a token that the page's address brings after #, and take it out of there: addresses are kept and shown. */
export function takeToken() {
  const found = /^#token=([\w-]+)$/.exec(location.hash);
  if (!found) return false;
  history.replaceState(null, "", location.pathname + location.search);
  setKey(found[1]);
  return true;
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** What the server refused, in its own words. */
export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function ask(path, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the server does not answer");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refused(response.status, problem.detail ?? `the server answered with status ${response.status}`);
}

export async function call(path, options = {}) {
  const response = await ask(path, options);
  return response.status === 204 ? null : response.json();
}

/** Yield a stream of server-sent events as { event, data }. EventSource cannot send a key. */
export async function* events(path, signal) {
  const response = await ask(path, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r\n", "\n");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").map((line) => line.split(/:\s?(.*)/s));
      const data = lines.filter(([field]) => field === "data").map(([, rest]) => rest).join("\n");
      const event = lines.find(([field]) => field === "event")?.[1] ?? "message";
      if (data) yield { event, data: JSON.parse(data) };
    }
  }
}
