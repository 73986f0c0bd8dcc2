// The network as a metro plan: each task a line, each component a stop, shared stops shared.

import { call } from "./api.js";
import { byId, svg } from "./dom.js";
import { count } from "./format.js";

const COLUMN = 62; // pixels from stop to stop
const LANE = 30; // from line to line, where they run apart
const BUNDLE = 7; // and within a stop that they share
const STOP = 16; // height of a stop of one line
const GAP = 12; // between stops one above the other
const TOP = 46;
const LEFT = 190;
const LEAD = 60; // from a line's name to its first stop
const LONGEST = 16; // letters of a name that have room
const COLOURS = 10;
const NAMES = { patch_embed: "patches", pos_embed: "position", adapter: "adapter", block: "block", norm: "norm", head: "head" };

const details = new Map(); // of routes by their digest: they never change, but who shares them does
let wanted = 0;

/** Draw the plan of tasks ({ task, release, route }). */
export async function draw(tasks) {
  const request = ++wanted;
  const found = await Promise.all(tasks.map(detail));
  if (request !== wanted) return; // the selection moved on meanwhile
  const map = byId("map");
  map.replaceChildren(...(found.length ? [plan(found)] : []));
  for (const other of [...details.keys()]) if (!found.some((task) => key_of(task) === other)) details.delete(other);
}

const key_of = ({ task, release }) => `${release} ${task}`;

async function detail(task) {
  const key = key_of(task);
  if (!details.has(key)) details.set(key, await call(`v1/tasks/${encodeURIComponent(task.task)}`));
  return details.get(key);
}

function plan(tasks) {
  const columns = columns_of(tasks);
  columns.forEach((stops) => place(stops, tasks.length));
  const width = LEFT + (columns.length - 1) * COLUMN + 60;
  const height = TOP + Math.max(...columns.flat().map((stop) => stop.y + height_of(stop) / 2)) + 20;
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": "Plan of the network" },
    ...columns.map((stops, x) => caption(stops[0], x)),
    ...tasks.map((task, index) => line(task, index, columns)),
  );
  columns.forEach((stops, x) => stops.forEach((stop) => drawing.append(mark(stop, x, tasks))));
  return drawing;
}

/** Return the stops of each column, in the order in which an image passes them. */
function columns_of(tasks) {
  const columns = new Map();
  tasks.forEach((task, index) => {
    for (const { place_key, rank, component } of places(task)) {
      if (!columns.has(place_key)) columns.set(place_key, { rank, stops: new Map() });
      const stops = columns.get(place_key).stops;
      if (!stops.has(component.id)) stops.set(component.id, { component, name: place_key, lines: [] });
      stops.get(component.id).lines.push(index);
    }
  });
  return [...columns.values()].sort((a, b) => a.rank - b.rank).map(({ stops }) => [...stops.values()]);
}

function* places(task) {
  let block = 0;
  for (const stage of task.stages) {
    for (const component of stage.components) {
      const at = { patch_embed: 0, pos_embed: 1, norm: 1e6, head: 1e6 + 1 }[component.kind];
      if (at !== undefined) yield { place_key: NAMES[component.kind], rank: at, component };
      else if (component.kind === "adapter") yield { place_key: `adapter ${block + 1}`, rank: 2 + 2 * block, component };
      else yield { place_key: `block ${block + 1}`, rank: 3 + 2 * block++, component };
    }
  }
}

const height_of = (stop) => STOP + (stop.lines.length - 1) * BUNDLE;

/** Give the stops of a column their height: near their lines' own lanes, none over another. */
function place(stops, lanes) {
  for (const stop of stops) {
    stop.wish = (stop.lines.reduce((sum, index) => sum + index, 0) / stop.lines.length) * LANE;
  }
  stops.sort((a, b) => a.wish - b.wish || a.lines[0] - b.lines[0]);
  let free = -Infinity;
  for (const stop of stops) {
    const half = height_of(stop) / 2;
    stop.y = Math.max(stop.wish, free + half + GAP);
    free = stop.y + half;
  }
  const last = stops.at(-1);
  const over = Math.max(0, last.y - Math.max(last.wish, ((lanes - 1) * LANE)));
  for (const stop of stops) stop.y = Math.max(height_of(stop) / 2 - STOP / 2, stop.y - over / 2);
}

const x_of = (column) => LEFT + column * COLUMN;
const y_of = (stop, index) => TOP + stop.y + (stop.lines.indexOf(index) - (stop.lines.length - 1) / 2) * BUNDLE;

function caption(stop, column) {
  const text = stop.name.replace("block ", "");
  return svg("text", { class: "caption", x: x_of(column), y: 20, "text-anchor": "middle" }, text.startsWith("adapter") ? "adapter" : text);
}

/** The line of one task: level at its stops, slanted between them; it passes by where it has no stop. */
function line(task, index, columns) {
  const points = [];
  columns.forEach((stops, column) => {
    const stop = stops.find((found) => found.lines.includes(index));
    if (stop) points.push([x_of(column), y_of(stop, index)]);
  });
  const lane = TOP + index * LANE;
  points.unshift([points[0][0] - LEAD, lane]);
  let path = `M${points[0].join(",")}`;
  for (let at = 1; at < points.length; at++) {
    const [from_x, from_y] = points[at - 1];
    const [x, y] = points[at];
    const slant = Math.min(Math.abs(y - from_y) / 2, (x - from_x) / 2 - STOP / 2 - 4);
    const middle = (from_x + x) / 2;
    path += `L${middle - slant},${from_y}L${middle + slant},${y}L${x},${y}`;
  }
  const colour = `line-${index % COLOURS}`;
  return svg(
    "g",
    {},
    svg("path", { class: `line ${colour}`, d: path }),
    svg("text", { class: "name", x: points[0][0] - 8, y: lane + 4, "text-anchor": "end" }, shortened(task.task), svg("title", {}, task.task)),
  );
}

const shortened = (name) => (name.length > LONGEST ? `${name.slice(0, LONGEST - 1)}…` : name);

function mark(stop, column, tasks) {
  const { component, lines } = stop;
  const size = height_of(stop);
  const kind = component.of_root ? "root" : lines.length > 1 || component.shared_with.length ? "shared" : "own";
  const shape = component.kind === "adapter" ? "adapter" : "";
  const told = text_of(stop, kind, tasks);
  const group = svg(
    "g",
    { class: `stop ${kind} ${shape} line-${lines[0] % COLOURS}`, tabindex: 0, role: "img", "aria-label": told },
    svg("rect", { x: x_of(column) - STOP / 2, y: TOP + stop.y - size / 2, width: STOP, height: size, rx: shape ? 2 : STOP / 2 }),
    svg("title", {}, told),
  );
  for (const event of ["focus", "pointerenter", "click"]) {
    group.addEventListener(event, () => (byId("stop").textContent = told));
  }
  return group;
}

function text_of({ component, name, lines }, kind, tasks) {
  const users = [...new Set([...lines.map((index) => tasks[index].task), ...component.shared_with])].sort();
  const whose = { root: "the root's, frozen", shared: "shared by tasks", own: `${users[0]}'s own` }[kind];
  const used = kind === "own" ? "" : `; used by ${users.join(", ")}`;
  return `${name}: ${whose}, ${count(component.parameters)} parameters${used}`;
}
