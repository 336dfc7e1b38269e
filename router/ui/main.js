// Joins the views: one is shown at a time, and what it shows is asked for while it is looked at.

import { getJson, readKey, writeKey } from "./api.js";
import { byId, showProblem } from "./dom.js";
import { showBody, startPlayground } from "./playground.js";
import { makeSamplers } from "./samplers.js";
import { showTimelines } from "./timelines.js";
import { showTopology } from "./topology.js";

const POLL_MS = 1000;
const views = { playground: null, topology: showTopology, requests: showTimelines };
const tabs = Object.keys(views).map((name) => byId(`tab-${name}`));
let shown = "playground";

function show(name) {
  shown = name in views ? name : "playground";
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${shown}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  refresh();
}

async function refresh() {
  if (document.hidden || !views[shown]) return;
  await guarded(views[shown]);
}

/** Runs `action`; what goes wrong is shown, and forgotten when it works again. */
async function guarded(action) {
  try {
    await action();
    if (shown !== "playground") showProblem("");
  } catch (error) {
    showProblem(error.status === 401 ? "The server wants an API key: enter it above." : error.message);
    if (error.status === 401) byId("key").focus();
  }
}

async function connect() {
  const { data } = await getJson("v1/models");
  byId("model").textContent = data[0].id;
  await makeSamplers(showBody);
  showProblem("");
}

async function poll() {
  await refresh();
  setTimeout(poll, POLL_MS);
}

function onArrow(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
  next.focus();
  next.click();
}

for (const tab of tabs) {
  tab.onclick = () => {
    location.hash = `/${tab.id.slice("tab-".length)}`; // the id of no element: going to one takes the focus away
  };
  tab.onkeydown = onArrow;
}
addEventListener("hashchange", () => show(location.hash.slice(2)));
document.addEventListener("visibilitychange", refresh);
byId("scale").onchange = refresh;
byId("key").value = readKey();
byId("key").onchange = () => {
  writeKey(byId("key").value.trim());
  guarded(connect);
};

startPlayground();
showBody();
show(location.hash.slice(2));
guarded(connect).then(poll);
