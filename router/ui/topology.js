// The router, its workers and the links between them, as GET v1/topology tells.

import { getJson } from "./api.js";
import { byId, element } from "./dom.js";
import { bytes, percent, rounded, seconds } from "./format.js";

let before = null;

export async function showTopology() {
  const found = await getJson("v1/topology");
  const now = performance.now() / 1000;
  byId("router").replaceChildren(routerCard(found.router, rates(found.router, now)));
  for (const role of ["prefill", "decode"]) {
    const workers = found.workers.filter((worker) => worker.role === role);
    byId(role).replaceChildren(...(workers.length ? workers.map(workerCard) : [element("p", {}, "none")]));
  }
  byId("links").replaceChildren(...(found.links.length ? found.links.map(linkRow) : [emptyRow()]));
}

/** Tokens a second since the page last asked. */
function rates(router, now) {
  const past = before ?? { now, router };
  before = { now, router };
  const elapsed = now - past.now;
  const rate = (name) => (elapsed > 0 ? Math.max(0, router[name] - past.router[name]) / elapsed : 0);
  return { prompt: rate("num_prompt_tokens"), output: rate("num_generation_tokens") };
}

function routerCard(router, rate) {
  const facts = [
    ["waiting", router.num_waiting],
    ["running", router.num_running],
    ["prompt tokens/s", rounded(rate.prompt)],
    ["output tokens/s", rounded(rate.output)],
    ["requests done", router.num_ended.toLocaleString("en")],
    ["workers lost", router.num_workers_lost],
    ["up for", seconds(router.uptime_s)],
  ];
  return card("Router", router.model, facts.map(([name, value]) => element("div", {}, ...pair(name, value))));
}

function workerCard(worker) {
  const used = element("meter", { min: 0, max: 1, value: worker.num_blocks_used / (worker.num_blocks || 1) });
  used.setAttribute("aria-label", `KV blocks in use on ${worker.name}`);
  const facts = [
    ["KV blocks", `${worker.num_blocks_used} of ${worker.num_blocks} (${percent(worker.num_blocks_used, worker.num_blocks)})`],
    ["running", `${worker.num_running} of ${worker.max_num_seqs}`],
    ["waiting", `${worker.num_waiting} (${worker.num_waiting_tokens} tokens)`],
    ["prefill", worker.prefill_tokens_per_s ? `${rounded(worker.prefill_tokens_per_s)} tokens/s` : "–"],
    ["prefix cache hits", percent(worker.num_prefix_hit_tokens, worker.num_prefix_query_tokens)],
    [worker.role === "prefill" ? "KV sent" : "KV received", transferred(worker)],
    ["last heard", seconds(worker.heard_s)],
  ];
  if (worker.role === "decode") facts.splice(4, 0, ["step", worker.decode_step_s ? seconds(worker.decode_step_s) : "–"]);
  if (worker.num_draft_tokens) facts.push(["guesses right", percent(worker.num_accepted_tokens, worker.num_draft_tokens)]);
  const made = card(worker.name, worker.state, facts.flatMap(([name, value]) => pair(name, value)));
  made.querySelector("h3").after(used);
  return made;
}

function transferred(worker) {
  const rate = worker.transfer_bytes_per_s ? ` at ${bytes(worker.transfer_bytes_per_s)}/s` : "";
  return bytes(worker.num_transferred_bytes) + rate;
}

function linkRow(link) {
  const bandwidth = link.bytes_per_s ? `${bytes(link.bytes_per_s)}/s` : "–";
  const numbers = [link.num_moving, link.num_transfers, bytes(link.num_bytes), bandwidth];
  const cells = numbers.map((value) => element("td", { className: "number" }, String(value)));
  return element("tr", {}, element("td", {}, link.prefill), element("td", {}, link.decode), ...cells);
}

const emptyRow = () => element("tr", {}, element("td", { colSpan: 6 }, "none yet"));

function card(title, state, facts) {
  const head = element("h3", {}, title, element("span", { className: "state" }, state));
  return element("article", { className: "card" }, head, element("dl", {}, ...facts));
}

const pair = (name, value) => [element("dt", {}, name), element("dd", {}, String(value))];
