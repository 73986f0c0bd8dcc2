// The table of tasks: what each is worth and costs, and which are selected.

import { call } from "./api.js";
import { byId, el, tell } from "./dom.js";
import { count, percent } from "./format.js";

const FIRST_SELECTED = 12; // more lines than this make no map
const MEASURED = 5;

const selected = new Set();
const latency_ms = new Map(); // of tasks, where measured
let known = [];

export const selection = () => known.map(({ task }) => task).filter((task) => selected.has(task));
export const all_selected = () => selected.size === known.length;

/** Show the tasks of a release; `changed` is called whenever the selection is another. */
export function show(tasks, changed) {
  const first = known.length === 0;
  const before = new Set(known.map(({ task }) => task));
  known = tasks;
  for (const { task } of tasks) {
    if (first ? selected.size < FIRST_SELECTED : !before.has(task)) selected.add(task);
  }
  for (const task of [...selected]) if (!tasks.some((found) => found.task === task)) selected.delete(task);
  render(changed);
  byId("select-all").onclick = () => choose(tasks.map(({ task }) => task), changed);
  byId("select-none").onclick = () => choose([], changed);
  byId("measure").onclick = () => measure(changed).catch((error) => tell(error.message));
  changed();
}

function choose(names, changed) {
  selected.clear();
  for (const name of names) selected.add(name);
  render(changed);
  changed();
}

function render(changed) {
  const rows = known.map((found) => row(found, changed));
  const empty = el("tr", {}, el("td", { colspan: 8 }, "No task yet. Add one below, or with: mu2net evolve STORE TASK --data FOLDER"));
  byId("task-table").tBodies[0].replaceChildren(...(rows.length ? rows : [empty]));
}

function row(found, changed) {
  const box = el("input", {
    type: "checkbox",
    checked: selected.has(found.task),
    onchange: () => {
      if (box.checked) selected.add(found.task);
      else selected.delete(found.task);
      changed();
    },
  });
  const quality = found.quality;
  const accuracy = quality === null ? "–" : percent(quality.test_accuracy ?? quality.validation_accuracy);
  const measured_on = quality === null ? "" : quality.test_accuracy === null ? " val" : " test";
  const time = latency_ms.get(found.task);
  const cells = [
    ["Accuracy", accuracy + measured_on],
    ["Classes", String(found.num_classes)],
    ["Parameters", count(found.parameters)],
    ["Added", count(found.parameters_added)],
    ["FLOPs", count(found.flops)],
    ["Of the root's", percent(found.flops / found.root_flops, 0)],
    ["Latency", time === undefined ? "–" : `${time.toFixed(1)} ms`],
  ];
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, el("label", {}, box, " ", found.task)),
    ...cells.map(([name, text]) => el("td", { "data-name": name }, text)),
  );
}

async function measure(changed) {
  const button = byId("measure");
  button.disabled = true;
  try {
    for (const task of selection()) {
      latency_ms.set(task, await median_ms(task, await drawn(known.find((found) => found.task === task).image_size)));
      render(changed);
    }
  } finally {
    button.disabled = false;
  }
}

async function median_ms(task, image) {
  const times = [];
  for (let request = 0; request < MEASURED; request++) {
    const form = new FormData();
    form.append("image", image, "drawn.png");
    const started = performance.now();
    await call(`v1/tasks/${encodeURIComponent(task)}/classify`, { method: "POST", body: form });
    times.push(performance.now() - started);
  }
  return times.sort((a, b) => a - b)[Math.floor(MEASURED / 2)];
}

/** Draw some image of the size that a task sees. */
function drawn(size) {
  const canvas = el("canvas", { width: size, height: size });
  const context = canvas.getContext("2d");
  for (let band = 0; band < 8; band++) {
    context.fillStyle = `hsl(${band * 45} 70% 50%)`;
    context.fillRect(0, (band * size) / 8, size, size / 8);
  }
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
