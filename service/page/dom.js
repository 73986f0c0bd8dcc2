// Elements without markup in strings: what the server sent only ever becomes text.

export const byId = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  return made(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return made(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A bar of `share` (0 to 1) of its width, with its meaning for those who do not see it. */
export function bar(share, text) {
  const filled = el("span", { class: "filled" });
  filled.style.width = `${(100 * Math.min(1, Math.max(0, share))).toFixed(2)}%`;
  return el("span", { class: "bar", role: "img", "aria-label": text }, filled);
}

/** Show what went wrong at the top of the page; without a text, nothing did. */
export function tell(text) {
  byId("alert").hidden = !text;
  byId("alert").textContent = text ?? "";
}
