// Builds elements. Text only ever becomes text nodes: everything shown here came from outside and is hostile.

const SVG = "http://www.w3.org/2000/svg";
const SAFE_URL = /^(https?:\/\/|\/)/i;

/** An element: h("a.link", {href, onclick}, "text", child, [children]). Null and false children are left out. */
export function h(spec, attributes, ...children) {
  return build((tag) => document.createElement(tag), spec, attributes, children);
}

/** The same for SVG. */
export function s(spec, attributes, ...children) {
  return build((tag) => document.createElementNS(SVG, tag), spec, attributes, children);
}

function build(create, spec, attributes, children) {
  const [tag, ...classes] = spec.split(".");
  const element = create(tag || "div");
  if (classes.length) element.setAttribute("class", classes.join(" "));
  if (attributes && (attributes instanceof Node || typeof attributes !== "object" || Array.isArray(attributes))) {
    children = [attributes, ...children];
    attributes = null;
  }
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "href" && !SAFE_URL.test(value)) continue;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

// Marks that turn the direction of text can make a line of code read as another ("Trojan Source", CVE-2021-42574): they are shown, not obeyed.
const shown = (text) => text.replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child == null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(shown(String(child))));
  }
}

/** Replaces what is in an element. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}
