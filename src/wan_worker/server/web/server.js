// The way to the server: requests with the key where one is needed, and a job's live messages.

const KEY = "wan-worker-key";

/** A refusal: what the server says went wrong, and at which field. */
export class Refused extends Error {
  constructor(status, error) {
    super(error.message || `The server answered ${status}`);
    this.status = status;
    this.code = error.code || "HTTP";
    this.retryable = Boolean(error.retryable);
    /** The field's own name: of "/input/size" it is "size". */
    this.field = fieldOf(error.field);
  }
}

/** The name of the request's field that a JSON pointer leads to. */
export function fieldOf(pointer) {
  const parts = (pointer || "").split("/").filter(Boolean);
  if (parts[0] === "input") parts.shift();
  return parts[0] ?? null;
}

const key = () => sessionStorage.getItem(KEY);
export const hasKey = () => Boolean(key());

/** fetch, of this server; asks for the key where the server does. */
export async function ask(path, options = {}) {
  let answer;
  for (;;) {
    const used = key();
    const headers = { ...options.headers, ...(used ? { "X-API-Key": used } : {}) };
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      throw new Refused(0, { code: "OFFLINE", message: "The server can't be reached", retryable: true });
    }
    if (answer.status !== 401) break;
    await askForKey(used);
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, body.error ?? {});
}

export const get = async (path) => (await ask(path)).json();

export async function send(method, path, body) {
  const given = body === undefined ? {} : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  const answer = await ask(path, { method, ...given });
  return answer.status === 204 ? null : answer.json();
}

/** An address that <video>, <img> and a link can use: they send no key, so then it is a copy. */
export async function media(url) {
  if (!hasKey() || !url.startsWith("/")) return url;
  return URL.createObjectURL(await (await ask(url)).blob());
}

let asking = null;
function askForKey(refused) {
  if (key() !== refused) return Promise.resolve(); // another request has asked meanwhile
  asking ??= new Promise((done) => {
    const dialog = document.getElementById("key-dialog");
    const field = document.getElementById("key");
    document.getElementById("key-error").textContent = refused ? "That is not this server's key." : "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, field.value.trim());
      field.value = "";
      asking = null;
      done();
    }, { once: true });
    dialog.showModal();
    field.focus();
  });
  return asking;
}

/**
 * Follow a job until it ends. By WebSocket; where that fails or a key is needed, which a WebSocket
 * can't send, by server-sent events; and where those break off, again a little later.
 * @param onMessage called with each message: progress, preview, ended.
 * @returns a function that stops it.
 */
export function follow(links, onMessage) {
  const stop = new AbortController();
  run();
  return () => stop.abort();

  async function run() {
    let ended = false;
    const hear = (message) => {
      if (stop.signal.aborted) return;
      ended ||= message.type === "ended";
      onMessage(message);
    };
    let socketWorks = !hasKey() && "WebSocket" in window;
    for (let pause = 500; !ended && !stop.signal.aborted; pause = Math.min(pause * 2, 10_000)) {
      try {
        if (socketWorks) socketWorks = await bySocket(links.live, hear, stop.signal);
        else await byEvents(links.events, hear, stop.signal);
      } catch (problem) {
        if (problem.status === 404) return;
      }
      if (!ended && !stop.signal.aborted) await new Promise((done) => setTimeout(done, pause));
    }
  }
}

/** Resolves when it closes: was it ever open? */
function bySocket(path, hear, signal) {
  return new Promise((done) => {
    const address = new URL(path, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address);
    let opened = false;
    signal.addEventListener("abort", () => socket.close(), { once: true });
    socket.onopen = () => { opened = true; };
    socket.onmessage = (event) => hear(JSON.parse(event.data));
    socket.onclose = () => done(opened);
  });
}

/** Read by hand: EventSource sends no key. */
async function byEvents(path, hear, signal) {
  const answer = await ask(path, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (data) hear(JSON.parse(data));
    }
  }
}
