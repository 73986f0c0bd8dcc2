// Jobs: evolutions that the server runs, followed while they run, and the form that adds a task.

import { call, events } from "./api.js";
import { bar, byId, el } from "./dom.js";
import { duration, percent } from "./format.js";
import { confirmed } from "./releases.js";

const ENDED = new Set(["done", "failed", "cancelled"]);
let following = null; // what ends the one stream of all jobs: a browser has six connections to a server
const jobs = new Map();
let is_offered = true; // until the server says that it knows of no jobs

/** Show the jobs, where the server takes any. */
export async function refresh(changed) {
  if (!is_offered) return;
  const found = await call("v1/jobs").catch((error) => error);
  const section = byId("jobs");
  is_offered = !(found instanceof Error && found.status === 404);
  section.hidden = !is_offered;
  document.querySelector('nav a[href="#jobs"]').hidden = section.hidden;
  if (found instanceof Error) {
    if (!section.hidden) byId("job-list").replaceChildren(el("p", {}, found.message));
    return;
  }
  jobs.clear();
  for (const job of found.jobs) jobs.set(job.id, job);
  render();
  if ([...jobs.values()].every(({ state }) => ENDED.has(state))) unfollow();
  else if (!document.hidden) follow(changed);
}

async function follow(changed) {
  if (following !== null) return;
  const own = new AbortController();
  following = own;
  try {
    for await (const { event, data } of events("v1/jobs/events", own.signal)) {
      jobs.set(data.id, data);
      render();
      if (event === "end") changed();
    }
  } catch {
    // the connection broke: the next refresh follows again
  } finally {
    if (following === own) following = null;
  }
}

/** End the stream: nothing is to be followed, the tab is hidden, or another key is used from here on. */
export function unfollow() {
  following?.abort();
  following = null;
}

/** Draw the jobs anew; whoever is at a button by keyboard stays there. */
function render() {
  const list = byId("job-list");
  const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  const newest = [...jobs.values()].sort((a, b) => String(b.created).localeCompare(String(a.created)));
  const rows = newest.map(row);
  list.replaceChildren(rows.length ? el("ol", { class: "jobs" }, ...rows) : el("p", {}, "No job yet."));
  if (focused !== null) list.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

/** Return how much of a job is done, 0 to 1: by time where a budget of time decides. */
function progress({ generation, generations, seconds, seconds_left }) {
  if (generations) return generation / generations;
  return seconds_left === null ? 0 : seconds / Math.max(1, seconds + seconds_left);
}

function row(job) {
  const running = job.state === "running";
  const share = progress(job);
  const facts = [
    running && job.phase,
    job.generation > 0 && `generation ${job.generation}${job.generations ? ` of ${job.generations}` : ""}`,
    job.candidates > 0 && `${job.candidates} candidates`,
    job.best_quality != null && `best ${percent(job.best_quality)}`,
    job.release != null && `release ${job.release}`,
    job.seconds > 0 && duration(job.seconds),
    running && job.seconds_left != null && `about ${duration(job.seconds_left)} left`,
    job.error,
  ].filter(Boolean);
  const cancel = async () => {
    if (!(await confirmed(`Cancel the job of task ${job.task}?`))) return;
    await call(`v1/jobs/${encodeURIComponent(job.id)}`, { method: "DELETE" }).catch(tell);
  };
  return el(
    "li",
    { class: job.state },
    el("strong", {}, job.task),
    el("span", { class: "mark" }, job.state),
    running ? bar(share, `${percent(share, 0)} done`) : null,
    el("span", { class: "reason" }, facts.join(" · ")),
    ENDED.has(job.state) ? null : el("button", { type: "button", "aria-label": `Cancel the job of ${job.task}`, onclick: cancel }, "Cancel"),
  );
}

const tell = (error) => (byId("job-state").textContent = error.message);

export function start(changed) {
  // tabs share the browser's six connections, so only those that are looked at keep one
  document.addEventListener("visibilitychange", () => (document.hidden ? unfollow() : changed()));
  const form = byId("job-form");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = new FormData(form);
    for (const name of ["budget", "parents"]) if (!body.get(name)) body.delete(name);
    byId("job-state").textContent = "Sending …";
    try {
      const { job } = await call("v1/tasks", { method: "POST", body });
      byId("job-state").textContent = `Job ${job.id} is ${job.state}.`;
      form.reset();
      await refresh(changed);
    } catch (error) {
      tell(error);
    }
  });
}
