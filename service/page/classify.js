// An image in, labelled bars out: one card for each selected task.

import { call } from "./api.js";
import { bar, byId, el } from "./dom.js";
import { percent } from "./format.js";
import { all_selected, selection } from "./tasks.js";

let image = null;
let latest = 0; // an answer that comes after a newer question is dropped

export function start() {
  const drop = byId("drop");
  byId("image").addEventListener("change", (event) => take(event.target.files[0]));
  for (const kind of ["dragover", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
}

function take(file) {
  if (!file) return;
  image = file;
  const preview = byId("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = file.name;
  preview.hidden = false;
  ask();
}

/** Ask the selected tasks about the image, if there is one. */
export async function ask() {
  if (image === null) return;
  const tasks = selection();
  const question = ++latest;
  if (tasks.length === 0) return tell("Select a task above.", []);
  tell("Asking …", [...byId("answers").children]);
  const form = new FormData();
  form.append("image", image);
  form.append("tasks", all_selected() ? "all" : tasks.join(","));
  const started = performance.now();
  try {
    const found = await call("v1/classify?top_k=5", { method: "POST", body: form });
    const time = performance.now() - started;
    if (question !== latest) return;
    const many = found.answers.length === 1 ? "1 task" : `${found.answers.length} tasks`;
    tell(`${many} of release ${found.release} answered in ${time.toFixed(0)} ms.`, found.answers.map(card));
  } catch (error) {
    if (question === latest) tell(error.message, []);
  }
}

function tell(text, cards) {
  byId("classify-state").textContent = text;
  byId("answers").replaceChildren(...cards);
}

function card({ task, results }) {
  const rows = results[0].predictions.map(({ label, probability }) => {
    const text = percent(probability);
    return el("li", {}, el("span", { class: "label" }, label), bar(probability, `${label}: ${text}`), el("span", { class: "value" }, text));
  });
  return el("article", { class: "answer", "aria-label": task }, el("h3", {}, task), el("ol", { class: "bars" }, ...rows));
}
