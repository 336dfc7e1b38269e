// Requests and the stages they went through, as GET v1/timelines tells.

import { getJson } from "./api.js";
import { byId, element } from "./dom.js";
import { seconds } from "./format.js";

const STAGES = ["queue", "prefill", "transfer", "decode"];

export async function showTimelines() {
  const { data } = await getJson("v1/timelines");
  const longest = Math.max(...data.map(total), 1e-9);
  const same = byId("scale").value === "same";
  byId("timelines").replaceChildren(...data.map((each) => row(each, same ? longest : total(each))));
}

const total = (timeline) => STAGES.reduce((sum, stage) => sum + timeline[`${stage}_s`], 0);

function row(timeline, longest) {
  const firstToken = timeline.queue_s + timeline.prefill_s + timeline.transfer_s;
  const begun = timeline.decode_s > 0 || timeline.outcome !== null;
  const workers = [timeline.prefill, timeline.decode].filter(Boolean).join(" → ");
  return element(
    "tr",
    {},
    element("td", { className: "id", title: timeline.request_id }, timeline.request_id),
    element("td", {}, timeline.outcome ?? "running"),
    number(timeline.num_prompt_tokens),
    number(timeline.num_cached_tokens),
    number(timeline.num_output_tokens),
    element("td", {}, workers || "–"),
    number(begun ? seconds(firstToken) : "–"),
    number(seconds(total(timeline))),
    element("td", {}, bar(timeline, longest)),
  );
}

const number = (value) => element("td", { className: "number" }, String(value));

function bar(timeline, longest) {
  const made = element("div", { className: "bar" });
  const told = STAGES.map((stage) => `${stage} ${seconds(timeline[`${stage}_s`])}`).join(", ");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", told);
  made.title = told;
  for (const stage of STAGES) {
    const part = element("span", { className: `stage ${stage}` });
    part.style.width = `${(100 * timeline[`${stage}_s`]) / longest}%`;
    if (timeline[`${stage}_s`] > 0) made.append(part);
  }
  return made;
}
