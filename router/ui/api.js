// Talking to the server this page came from. URLs are relative to the page, so a proxy may put a prefix before them.

const KEY = "isthmus-api-key";

export const readKey = () => sessionStorage.getItem(KEY) ?? "";

/** Kept until the tab is closed. */
export function writeKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** What the server refused: `param` names the field, where there is one. */
export class Refusal extends Error {
  constructor(status, message, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

export async function getJson(path) {
  const response = await fetch(path, { headers: headers(), cache: "no-store" });
  return (await checked(response)).json();
}

export async function postJson(path, body, signal) {
  return (await post(path, body, signal)).json();
}

/** The events of a streamed answer, until [DONE]. */
export async function* postEvents(path, body, signal) {
  const response = await post(path, body, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Refusal(response.status, event.error.message, event.error.param);
    yield event;
  }
  throw new Refusal(response.status, "the answer broke off");
}

async function post(path, body, signal) {
  const sent = { method: "POST", headers: { ...headers(), "Content-Type": "application/json" }, signal };
  return checked(await fetch(path, { ...sent, body: JSON.stringify(body) }));
}

function headers() {
  const key = readKey();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function checked(response) {
  if (response.ok) return response;
  const error = await response.json().then((body) => body.error, () => null);
  throw new Refusal(response.status, error?.message ?? `the server answered ${response.status}`, error?.param);
}

/** The data of each server-sent event: here always one line. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (buffer + value).split("\n");
      buffer = lines.pop();
      yield* lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
