// The list: only the rows in sight exist. New reports announce themselves above it; they never push what is being read.

import { h, fill } from "./dom.js";
import { sparkline } from "./chart.js";
import { since, plural, words } from "./format.js";

const ROW = 64;
const SPARE = 6;

export class List {
  /** onopen(id) when a row is chosen; onmore() when the end comes near. */
  constructor({ onopen, onmore }) {
    this.onmore = onmore;
    this.rows = [];
    this.selected = null;
    this.drawn = new Map();
    this.space = h("div.rows", { role: "presentation" });
    this.element = h(
      "div.list-scroll",
      { role: "listbox", "aria-label": "Reports", tabindex: "0", onscroll: () => this.schedule() },
      this.space,
    );
    this.space.addEventListener("click", (event) => {
      const row = event.target.closest("[data-id]");
      if (!row || event.metaKey || event.ctrlKey) return;
      event.preventDefault();
      onopen(row.dataset.id);
    });
    new ResizeObserver(() => this.schedule()).observe(this.element);
  }

  set(rows) {
    this.rows = rows;
    this.drawn.forEach((element) => element.remove());
    this.drawn.clear();
    this.draw();
  }

  /** Replaces one row where it stands, so that live changes never move what is being read. */
  patch(row) {
    const index = this.rows.findIndex((known) => known.id === row.id);
    if (index < 0) return false;
    this.rows[index] = row;
    this.drawn.get(index)?.remove();
    this.drawn.delete(index);
    this.draw();
    return true;
  }

  select(id, { reveal = true } = {}) {
    this.selected = id;
    for (const [index, element] of this.drawn) this.mark(element, this.rows[index]);
    const index = this.rows.findIndex((row) => row.id === id);
    this.element.setAttribute("aria-activedescendant", index < 0 ? "" : `row-${id}`);
    if (index < 0 || !reveal) return;
    const top = index * ROW;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (top + ROW > this.element.scrollTop + this.element.clientHeight) this.element.scrollTop = top + ROW - this.element.clientHeight;
  }

  neighbour(step) {
    if (!this.rows.length) return null;
    const index = this.rows.findIndex((row) => row.id === this.selected);
    return this.rows[index < 0 ? 0 : Math.min(this.rows.length - 1, Math.max(0, index + step))].id;
  }

  schedule() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      this.draw();
    });
  }

  draw() {
    this.space.style.height = `${this.rows.length * ROW}px`;
    const first = Math.max(0, Math.floor(this.element.scrollTop / ROW) - SPARE);
    const last = Math.min(this.rows.length, Math.ceil((this.element.scrollTop + (this.element.clientHeight || 800)) / ROW) + SPARE);
    for (const [index, element] of this.drawn) {
      if (index >= first && index < last) continue;
      element.remove();
      this.drawn.delete(index);
    }
    for (let index = first; index < last; index += 1) {
      if (this.drawn.has(index)) continue;
      const element = row(this.rows[index]);
      element.style.transform = `translateY(${index * ROW}px)`;
      this.mark(element, this.rows[index]);
      this.drawn.set(index, element);
      this.space.append(element);
    }
    if (last >= this.rows.length - SPARE) this.onmore?.();
  }

  mark(element, data) {
    const chosen = data.id === this.selected;
    element.classList.toggle("selected", chosen);
    element.setAttribute("aria-selected", String(chosen));
  }
}

export function priority(value) {
  return h(`span.priority.${(value ?? "none").toLowerCase()}`, { title: value ? `Priority ${value}` : "No priority yet" }, value ?? "··");
}

export function state(value, waits, waiting = false) {
  return h(`span.state.s-${value}${waiting ? ".waiting" : ""}`, { title: waits ? `${words(value)}: ${waits}` : words(value) }, h("span.shape", { "aria-hidden": "true" }), h("span.words", waits || words(value)));
}

/** Deploys as fractions of the last 24 hours. */
function marks(deploys) {
  const start = Math.floor(Date.now() / 3600000) * 3600000 - 23 * 3600000;
  return deploys.map((deploy) => (Date.parse(deploy.at) - start) / 86400000).filter((at) => at >= 0 && at <= 1);
}

function row(data) {
  return h(
    "a.row",
    { href: `/reports/${data.id}`, id: `row-${data.id}`, role: "option", "data-id": data.id, tabindex: "-1" },
    priority(data.priority),
    h("span.line", h("span.title", { title: data.title, dir: "auto" }, data.title), h("span.age", since(data.last_seen))),
    h(
      "span.line.meta",
      h("span.service", { title: data.services.join(", ") }, data.services.join(", ") || "no service"),
      sparkline(data.sparkline, marks(data.deploys)),
      h("span.people", { title: plural(data.people_count, "person affected", "people affected") }, data.people_count > 0 && plural(data.people_count, "person", "people")),
      state(data.state, data.waits_for, data.waits_for_person),
    ),
  );
}

export function empty(element, ...content) {
  return fill(element, h("div.empty", content));
}
