// A form for every sampling parameter, from GET v1/samplers. What is left empty is not sent.

import { getJson } from "./api.js";
import { byId, element } from "./dom.js";

/** Makes the form, once; `changed` is called whenever a value is. */
export async function makeSamplers(changed) {
  const form = byId("samplers");
  if (form.childElementCount) return;
  const { data } = await getJson("v1/samplers");
  const groups = grouped(data);
  form.replaceChildren(...[...groups].map(([name, ones], index) => group(name, ones, index === 0)));
  form.oninput = (event) => {
    follow(event.target);
    changed();
  };
}

function grouped(data) {
  const groups = new Map();
  for (const one of data) groups.set(one.group, [...(groups.get(one.group) ?? []), one]);
  return groups;
}

function group(name, parameters, open) {
  return element("details", { open }, element("summary", {}, name), ...parameters.map(parameterRow));
}

function parameterRow(parameter) {
  const id = `sampler-${parameter.name}`;
  const row = element("div", { className: "parameter" });
  Object.assign(row.dataset, { name: parameter.name, kind: parameter.kind });
  const inputs = element("div", { className: "inputs" }, ...controls(parameter, id));
  const also = parameter.aliases ? ` Also: ${parameter.aliases.join(", ")}.` : "";
  const help = `${parameter.help}. Neutral: ${JSON.stringify(parameter.neutral)}.${also}`;
  const told = element("p", { className: "help", id: `${id}-help` }, help);
  row.append(element("label", { htmlFor: id }, parameter.name), inputs, told);
  row.querySelector(`#${CSS.escape(id)}`).setAttribute("aria-describedby", told.id);
  return row;
}

function controls(parameter, id) {
  if (parameter.kind === "boolean") {
    const options = ["", "true", "false"].map((value) => element("option", { value }, value || "as the server"));
    return [element("select", { id, className: "value" }, ...options)];
  }
  const placeholder = JSON.stringify(parameter.neutral);
  if (parameter.kind === "list" || parameter.kind === "object") {
    return [element("textarea", { id, className: "text", rows: 1, placeholder, spellcheck: false })];
  }
  const value = element("input", { id, className: "value", placeholder, autocomplete: "off" });
  value.inputMode = parameter.kind === "string" ? "text" : "decimal";
  return parameter.slider ? [slider(parameter), value] : [value];
}

function slider(parameter) {
  const { minimum, maximum, step } = parameter.slider;
  const made = element("input", { type: "range", min: minimum, max: maximum, step, value: parameter.neutral ?? minimum });
  made.setAttribute("aria-label", `${parameter.name}, slider`);
  return made;
}

/** Keeps a slider and its number the same. */
function follow(input) {
  const row = input.closest(".parameter");
  const [first, second] = row.querySelectorAll("input");
  if (second && input === first) second.value = first.value;
  else if (second && input.value !== "") first.value = input.value;
  row.classList.toggle("set", field(row).value !== "");
  row.classList.remove("wrong");
}

const field = (row) => row.querySelector("select, textarea, input:not([type=range])");

/** The values that were set, by name. Throws an Error with `param` for one that cannot be read. */
export function samplerValues() {
  const values = {};
  for (const row of document.querySelectorAll(".parameter")) {
    const text = field(row).value.trim();
    if (text) values[row.dataset.name] = parsed(row.dataset, text);
  }
  return values;
}

function parsed({ name, kind }, text) {
  if (kind === "string") return text;
  try {
    const value = JSON.parse(text);
    if (kind === "integer" && !Number.isSafeInteger(value)) throw new Error("must be an integer below 2^53");
    return value;
  } catch (error) {
    throw Object.assign(new Error(`${name}: ${error.message}`), { param: name });
  }
}

/** Shows which parameter was refused. */
export function markWrong(param) {
  const name = param?.split(/[.[]/)[0];
  for (const row of document.querySelectorAll(".parameter")) {
    const wrong = row.dataset.name === name;
    row.classList.toggle("wrong", wrong);
    if (wrong) row.closest("details").open = true;
  }
}
