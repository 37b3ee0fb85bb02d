// The gateway's API as the page uses it. The session's cookie is out of reach for scripts; a token given in the address is exchanged for it.

export class Failed extends Error {
  constructor(status, detail, errors = []) {
    super(detail);
    this.status = status;
    this.errors = errors;
  }
}

async function ask(method, path, { body, version, signal } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (version !== undefined) headers["If-Match"] = `"${version}"`;
  let response;
  try {
    response = await fetch(path, { method, headers, signal, credentials: "same-origin", body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, "The gateway does not answer.");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Failed(response.status, problem.detail || problem.title || response.statusText, problem.errors);
}

const json = async (...request) => (await ask(...request)).json();

export const get = (path, options) => json("GET", path, options);
export const text = async (path) => (await ask("GET", path)).text();
export const post = (path, body = {}, version) => json("POST", path, { body, version });

/** Exchanges a token for a session. */
export const signIn = (token) => post("/v1/session", { token });
export const signOut = () => ask("DELETE", "/v1/session");

/** Takes the token out of the address, where it may have come from, before anything else sees it. */
export function tokenFromAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) history.replaceState(history.state, "", location.pathname + location.search);
  return token;
}

export function query(parameters) {
  const found = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) {
    for (const item of Array.isArray(value) ? value : [value]) if (item !== undefined && item !== null && item !== "" && item !== false) found.append(key, item);
  }
  const text = found.toString();
  return text ? `?${text}` : "";
}

const EVENTS = ["hello", "reset", "report.changed", "change.changed", "deploy.recorded", "measurement.completed", "command.refused"];

const RETRY_MS = 5000;

/** Listens to what changes: onevent(kind, body), onstate(live). Comes back by itself; where it cannot know what it missed, the kind is ``reset``. */
export function listen({ onevent, onstate }) {
  let greeted = false;
  const open = () => {
    const source = new EventSource("/v1/stream");
    source.onopen = () => onstate(true);
    source.onerror = () => {
      onstate(false);
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again, from where it was
      setTimeout(open, RETRY_MS);
    };
    for (const kind of EVENTS) {
      source.addEventListener(kind, (event) => {
        onstate(true);
        onevent(kind === "hello" && greeted ? "reset" : kind, JSON.parse(event.data || "{}").body ?? {});
        greeted = true;
      });
    }
  };
  open();
  addEventListener("offline", () => onstate(false));
}
