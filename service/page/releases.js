// The history of releases: which answers, what differs, and the way back.

import { call } from "./api.js";
import { byId, el } from "./dom.js";
import { count, date, percent } from "./format.js";

/** Show the answer of /v1/releases; `changed` is called after a change was asked for. */
export function show(list, changed) {
  byId("release-state").replaceChildren(...state(list, changed));
  byId("release-list").replaceChildren(...list.releases.map((release) => row(release, list, changed)));
}

function state(list, changed) {
  const parts = [`Release ${list.serving ?? "–"} answers`];
  if (list.active !== null && list.active !== list.serving) parts.push(`the store asks for ${list.active}`);
  if (list.failure) parts.push(`not taken up: ${list.failure.error}`);
  if (!list.held) return [`${parts.join("; ")}.`];
  const pending = list.pending.length ? `; waiting: ${list.pending.join(", ")}` : "";
  const go_on = () => act("Make what was published meanwhile active again?", "v1/releases/resume", changed);
  return [`${parts.join("; ")}. It is held by a person${pending}. `, el("button", { type: "button", onclick: go_on }, "Resume")];
}

function row(release, list, changed) {
  const number = release.release;
  const marks = [number === list.serving && "answers", number === list.active && list.held && "held", list.pending.includes(number) && "waits"].filter(Boolean);
  const back = () => act(`Answer from release ${number} again, and hold it there? Jobs go on publishing, but do not undo it.`, `v1/releases/${number}/activate`, changed);
  const buttons = [];
  if (release.parent !== null) {
    buttons.push(el("button", { type: "button", "aria-label": `What changed in release ${number}`, onclick: () => diff(release.parent, number) }, "What changed"));
  }
  if (number !== list.active) {
    buttons.push(el("button", { type: "button", "aria-label": `Roll back to release ${number}`, onclick: back }, number < list.active ? "Roll back" : "Activate"));
  }
  return el(
    "li",
    { class: number === list.serving ? "live" : "" },
    el("strong", {}, `Release ${number}`),
    ...marks.map((mark) => el("span", { class: "mark" }, mark)),
    el("span", { class: "reason" }, facts_of(release)),
    el("span", { class: "actions" }, ...buttons),
  );
}

/** Reason and number of tasks are not told to who may not know of private ones. */
function facts_of({ reason, tasks, created_at }) {
  return [reason, tasks !== null && `${tasks} tasks`, date(created_at)].filter(Boolean).join(" · ");
}

async function diff(before, after) {
  const found = await call(`v1/releases/${before}/diff/${after}`).catch((error) => error);
  byId("diff").replaceChildren(found instanceof Error ? el("p", {}, found.message) : table(found));
}

function table({ before, after, changes }) {
  const rows = changes.map((change) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, change.task),
      el("td", { "data-name": "What" }, change.what),
      el("td", { "data-name": "Validation before" }, percent(change.validation_before)),
      el("td", { "data-name": "After" }, percent(change.validation_after)),
      el("td", { "data-name": "New parameters" }, count(change.new_parameters)),
    ),
  );
  const heads = ["Task", "What", "Validation before", "After", "New parameters"];
  return el(
    "table",
    {},
    el("caption", {}, changes.length ? `From release ${before} to ${after}` : `Releases ${before} and ${after} have the same tasks`),
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows),
  );
}

async function act(question, path, changed) {
  if (!(await confirmed(question))) return;
  try {
    await call(path, { method: "POST" });
    changed();
  } catch (error) {
    changed(error);
  }
}

export function confirmed(question) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
