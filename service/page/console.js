// The console: begin here. Asks the server every few seconds, and redraws what has changed.

import { call, hasKey, setKey, takeToken } from "./api.js";
import * as classify from "./classify.js";
import { byId, tell } from "./dom.js";
import * as jobs from "./jobs.js";
import * as metro from "./metro.js";
import * as releases from "./releases.js";
import * as tasks from "./tasks.js";

const EVERY_MS = 4000;

let shown = null; // the release whose tasks are on the page
let list = []; // its tasks
let seen = null; // the releases as last told

async function refresh(problem) {
  try {
    const [found, history] = await Promise.all([call("v1/tasks"), call("v1/releases")]);
    show_releases(history);
    if (found.release !== shown) show_tasks(found);
    await jobs.refresh(refresh);
    tell(problem?.message);
  } catch (error) {
    tell(error.message);
  }
}

function show_tasks(found) {
  shown = found.release;
  list = found.tasks;
  byId("state").textContent = `Release ${shown}, ${list.length} tasks`;
  tasks.show(list, selection_changed);
}

function show_releases(history) {
  const text = JSON.stringify(history);
  if (text === seen) return; // a redraw would take the focus from whoever is at a button
  seen = text;
  releases.show(history, refresh);
}

function selection_changed() {
  const chosen = new Set(tasks.selection());
  metro.draw(list.filter(({ task }) => chosen.has(task))).catch((error) => tell(error.message));
  classify.ask();
}

function key_changed() {
  byId("key").placeholder = hasKey() ? "a key is in use in this tab" : "if the server has keys";
  shown = seen = null;
  jobs.unfollow();
  return refresh();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  key_changed();
});

addEventListener("hashchange", () => takeToken() && key_changed()); // pasted into an open tab
takeToken();

classify.start();
jobs.start(refresh);
await key_changed();
setInterval(() => document.hidden || refresh(), EVERY_MS);
