// A chat or a completion, streamed, with every sampling parameter.

import { postEvents, postJson } from "./api.js";
import { byId, element, showProblem } from "./dom.js";
import { rounded, seconds } from "./format.js";
import { markWrong, samplerValues } from "./samplers.js";

let messages = [];
let running = null;

const isChat = () => document.querySelector("input[name=mode]:checked").value === "chat";

export function startPlayground() {
  byId("ask").onsubmit = (event) => {
    event.preventDefault();
    if (!running) ask();
  };
  byId("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && isChat()) {
      event.preventDefault();
      byId("ask").requestSubmit();
    }
  };
  byId("stop").onclick = () => running?.abort();
  byId("clear").onclick = clear;
  for (const input of document.querySelectorAll(".mode input, #prompt, #system")) input.addEventListener("input", showBody);
  for (const input of document.querySelectorAll("input[name=mode]")) input.addEventListener("input", clear);
}

/** What would be sent now. */
export function showBody() {
  byId("system-row").hidden = !isChat();
  byId("prompt-label").textContent = isChat() ? "Message" : "Text to go on from";
  try {
    byId("body").textContent = JSON.stringify(makeBody(), null, 2);
  } catch (error) {
    byId("body").textContent = error.message;
  }
}

function makeBody() {
  const text = byId("prompt").value;
  const streamed = byId("stream").checked ? { stream: true, stream_options: { include_usage: true } } : {};
  const { logprobs, ...values } = samplerValues();
  if (!isChat()) return { prompt: text, ...values, ...(logprobs === undefined ? {} : { logprobs }), ...streamed };
  const system = byId("system").value;
  const asked = logprobs === undefined ? {} : { logprobs: true, top_logprobs: logprobs };
  return { messages: [...(system ? [said("system", system)] : []), ...messages, said("user", text)], ...values, ...asked, ...streamed };
}

const said = (role, content) => ({ role, content });

async function ask() {
  const text = byId("prompt").value;
  let answer;
  try {
    const body = makeBody();
    showProblem("");
    markWrong(null);
    answer = isChat() ? addChat(text) : addAnswer("", text);
    setRunning(new AbortController());
    await run(body, answer, running.signal);
    keep(text, answer.textContent);
  } catch (error) {
    failed(error, text, answer);
  } finally {
    setRunning(null);
    showBody();
  }
}

async function run(body, answer, signal) {
  const path = isChat() ? "v1/chat/completions" : "v1/completions";
  const began = performance.now();
  if (!body.stream) {
    const whole = await postJson(path, body, signal);
    append(answer, textOf(whole.choices[0]));
    showUsage(whole.usage, began);
    return;
  }
  for await (const event of postEvents(path, body, signal)) {
    for (const choice of event.choices) if (choice.index === 0) append(answer, textOf(choice));
    if (event.usage) showUsage(event.usage, began);
  }
}

const textOf = (choice) => choice.text ?? choice.delta?.content ?? choice.message?.content ?? "";

function append(answer, text) {
  const log = byId("answers");
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 20;
  answer.append(text);
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function addChat(text) {
  addAnswer("user", text);
  byId("prompt").value = "";
  return addAnswer("assistant", "");
}

function addAnswer(role, text) {
  const made = element("div", { className: role }, text);
  byId("answers").append(made);
  return made;
}

/** Of a chat, what was said, for the next message; what was stopped counts. */
function keep(text, answer) {
  if (isChat()) messages.push(said("user", text), said("assistant", answer));
}

function failed(error, text, answer) {
  if (error.name === "AbortError") {
    keep(text, answer.textContent);
    return;
  }
  showProblem(error.message);
  markWrong(error.param);
  answer?.classList.add("failed");
  if (!byId("prompt").value) byId("prompt").value = text;
}

function showUsage(usage, began) {
  const { timings, completion_tokens: count, prompt_tokens: prompt } = usage;
  const speed = count > 1 && timings.decode_s > 0 ? `, ${rounded((count - 1) / timings.decode_s)} tokens/s` : "";
  const stages = ["queue", "prefill", "transfer", "decode"].map((name) => `${name} ${seconds(timings[`${name}_s`])}`);
  const here = `${seconds((performance.now() - began) / 1000)} in all`;
  byId("usage").textContent = `${prompt} + ${count} tokens${speed}; ${stages.join(", ")}; ${here}`;
}

function setRunning(controller) {
  running = controller;
  byId("send").disabled = Boolean(controller);
  byId("stop").disabled = !controller;
}

function clear() {
  running?.abort();
  messages = [];
  byId("answers").replaceChildren();
  byId("usage").textContent = "";
  showBody();
}
