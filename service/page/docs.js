// The HTTP interface for people, made from /openapi.json: one foldable entry for each request.

import { call } from "./api.js";
import { byId, el, tell } from "./dom.js";

const METHODS = ["get", "post", "put", "delete"];

try {
  const told = await call("openapi.json");
  byId("operations").replaceChildren(...groups(told));
} catch (error) {
  tell(error.message);
}

function groups(told) {
  const found = new Map(); // operations by the first part of their path
  for (const [path, methods] of Object.entries(told.paths).sort(([a], [b]) => a.localeCompare(b))) {
    const group = group_of(path);
    if (!found.has(group)) found.set(group, []);
    for (const method of METHODS) if (methods[method]) found.get(group).push(operation(told, path, method, methods[method]));
  }
  return [...found].map(([name, operations]) => el("section", {}, el("h2", {}, name), ...operations));
}

function group_of(path) {
  const [, version, noun] = path.split("/");
  if (version === "v2") return "Open Inference Protocol";
  if (version !== "v1") return "For operators";
  return { tasks: "Tasks", classify: "Tasks", jobs: "Jobs", releases: "Releases" }[noun] ?? noun;
}

function operation(told, path, method, { description, parameters = [], requestBody, responses }) {
  const answers = Object.entries(responses);
  const [status, answer] = answers.find(([code]) => code.startsWith("2")) ?? answers[0];
  return el(
    "details",
    { class: "operation" },
    el("summary", {}, el("strong", {}, method.toUpperCase()), " ", el("code", {}, path), " ", el("span", { class: "reason" }, description)),
    fields("Parameters", parameters.map((given) => [`${given.name} (${given.in})`, type_of(told, given.schema), given.description, given.example])),
    ...Object.entries(requestBody?.content ?? {}).flatMap(([type, content]) => body(told, `Body, ${type}`, content)),
    ...Object.entries(answer.content ?? {}).flatMap(([type, content]) => body(told, `Answer ${status}, ${type}`, content)),
    el("p", { class: "reason" }, `Refusals: ${answers.map(([code]) => code).filter((code) => code >= "4").join(", ") || "none"}`),
  );
}

function body(told, title, { schema, example }) {
  const found = resolved(told, schema);
  const rows = Object.entries(found.properties ?? {}).map(([name, field]) => [name, type_of(told, field), field.description]);
  const shown = example ?? found.example;
  return [
    fields(title, rows) ?? el("h3", {}, title),
    shown === undefined ? null : el("pre", {}, typeof shown === "string" ? shown : JSON.stringify(shown, null, 1)),
  ];
}

function fields(title, rows) {
  if (!rows.length) return null;
  return el(
    "dl",
    {},
    el("h3", {}, title),
    ...rows.map(([name, type, meaning, example]) =>
      el("div", {}, el("dt", {}, el("code", {}, name), ` ${type}`), el("dd", {}, [meaning, example !== undefined && `for example ${example}`].filter(Boolean).join("; "))),
    ),
  );
}

function resolved(told, schema = {}) {
  return schema.$ref ? told.components.schemas[schema.$ref.split("/").at(-1)] : schema;
}

function type_of(told, schema = {}) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map((kind) => type_of(told, kind)).join(" or ");
  if (schema.type === "array") return `list of ${type_of(told, schema.items)}`;
  return schema.format ?? schema.type ?? "anything";
}
