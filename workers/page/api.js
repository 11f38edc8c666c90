// The API: every request of the page goes through here.

const KEY = "sigma-key";

// A refusal that may be gone in a moment is asked again: so many times, after so many seconds.
const RETRIES = 2;
const LONGEST_WAIT_S = 5;

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// Of this tab, until it is closed.
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Ask for JSON; `ApiError` has the service's own sentence. `keyNeeded` is told of a 401. */
export async function ask(path, options = {}) {
  for (let tries = 0; ; tries += 1) {
    const response = await sent(path, options);
    if (response.ok) return response.json();
    const wait = Number(response.headers.get("retry-after"));
    const mayHelp = response.status === 429 || response.status === 503;
    if (mayHelp && tries < RETRIES && wait <= LONGEST_WAIT_S) {
      await new Promise((resolve) => setTimeout(resolve, Math.max(wait, 0.2) * 1000));
      continue;
    }
    if (response.status === 401) document.dispatchEvent(new CustomEvent("key-needed"));
    throw new ApiError(await sentence(response), response.status);
  }
}

async function sent(path, { method = "GET", json, body, type, parameters = {}, signal } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (json !== undefined) headers["content-type"] = "application/json";
  if (type) headers["content-type"] = type;
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null));
  const address = query.size ? `${path}?${query}` : path;
  try {
    return await fetch(address, {
      method,
      headers,
      signal,
      body: json === undefined ? body : JSON.stringify(json),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service does not answer; check that it runs, then try again.", 0);
  }
}

async function sentence(response) {
  try {
    const { error } = await response.json();
    return `${error[0].toUpperCase()}${error.slice(1)}.`;
  } catch {
    return `The service answers with status ${response.status}.`;
  }
}

/** The address of a picture by its link. The page may have another name than links have. */
export function picture(link, size) {
  const [path, query] = link.slice(link.indexOf("/v1/images/") + 1).split("?");
  const parameters = new URLSearchParams(query ?? "");
  if (size) parameters.set("size", size);
  return parameters.size ? `${path}?${parameters}` : path;
}

export const imagePath = (imageId) => `v1/images/${encodeURIComponent(imageId)}`;
