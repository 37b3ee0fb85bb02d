// A word on the grouping, asked for where one reads: which other report (found by its words), what will happen, why; then what came of it.

import { h, fill } from "./dom.js";
import * as api from "./api.js";
import { count, plural } from "./format.js";
import { priority, state } from "./list.js";

const FOUND_MAX = 8;
const WATCH_MS = [300, 500, 700, 1000, 1500, 2000, 3000, 3000, 3000]; // some 15 seconds in all: a batch with a model to ask may hold the flow
const SETTLED = new Set(["done", "refused", "undone"]);
let number = 0;

/**
 * The form of one word. `other`: whether another report has to be found, or it is `given`; `sentence(row)`: what will happen, said before it
 * is done; `body(row)`: what is sent; `done(word, row)`: what to say of a word that was carried out; `undoes`: the word that is taken back.
 */
export function wordForm({ report, title, verb, route, action, other = false, given = null, undoes, sentence, body, done }, context) {
  let chosen = given;
  const reason = h("input.search", { "aria-label": "Why (kept with the word)", placeholder: "Why (optional, kept with the word)", maxlength: "2000", autocomplete: "off" });
  const said = h("p.will", { "aria-live": "polite" });
  const wrong = h("div");
  const submit = h("button.button.primary", { type: "submit" }, verb);
  const pick = (row) => {
    chosen = row;
    fill(said, !other || row ? sentence(row) : "");
    submit.disabled = other && !row;
    if (row && other) reason.focus();
  };
  const form = h(
    "form.input-form.word-form",
    { "aria-label": title, onsubmit: (event) => { event.preventDefault(); send(); } },
    h("strong", title),
    other && finder(report, pick),
    said,
    reason,
    wrong,
    h("div.actions", submit, h("button.button.quiet", { type: "button", onclick: () => close(), "data-cancel": "" }, "Cancel", h("kbd", "esc"))),
  );
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  const back = document.activeElement;
  const close = () => {
    form.remove();
    if (back?.isConnected) back.focus({ preventScroll: true });
  };
  pick(given);

  async function send() {
    if (submit.disabled) return;
    submit.disabled = true;
    fill(wrong);
    try {
      const known = new Set((await words(report.id)).map((word) => word.command_id));
      await context.say(report.id, route, { ...body(chosen), comment: reason.value.trim() });
      const note = h("p.note", { role: "status" }, "Asked for. The grouping carries it out in a moment.");
      form.replaceWith(note);
      context.asked();
      await follow(note, report.id, (word) => (word.action === action && !known.has(word.command_id)) || (word.command_id === undoes && word.state === "undone"), (word) => done(word, chosen));
      context.asked();
    } catch (error) {
      submit.disabled = false;
      fill(wrong, failed(error));
    }
  }

  /** What went wrong, said where the person acted. A report that changed meanwhile is looked at again first, and what was typed stays. */
  function failed(error) {
    const stale = error.status === 409 && /version/.test(error.message);
    const again = h("button.button", { type: "button", onclick: async () => { again.disabled = true; await context.lookAgain(); fill(wrong, h("p.note", { role: "status" }, "This is how it stands now. Send it when it still is what you mean.")); submit.focus(); } }, "Look again");
    return h("div.note.error", { role: "alert" }, h("p", stale ? "Not done: the report has changed since you looked at it." : `Not done: ${error.message}`), stale && again);
  }

  return form;
}

export async function words(id) {
  return (await api.get(`/v1/reports/${id}/grouping`)).words;
}

/** Waits until the word that was asked for is carried out or refused, and says which. */
async function follow(note, id, is, done) {
  for (const pause of WATCH_MS) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    let word;
    try {
      word = (await words(id)).find(is);
    } catch {
      continue; // asked again in a moment; the word itself is kept by the gateway
    }
    if (!word || !SETTLED.has(word.state)) continue;
    if (word.state === "refused") {
      note.className = "note error";
      note.setAttribute("role", "alert");
      fill(note, `Not done: ${word.refusal}`);
    } else {
      fill(note, done(word));
    }
    return;
  }
  fill(note, "Asked for, and not carried out yet. It is listed under “Said about the grouping”.");
}

/** Finds another report of the project by its words, its id or its address: a combobox (WAI-ARIA 1.2) over the list's own search. */
function finder(report, pick) {
  const id = `found-${(number += 1)}`;
  let rows = [];
  let at = -1;
  let turn = 0;
  const field = h("input.search", {
    role: "combobox", "aria-expanded": "false", "aria-controls": id, "aria-autocomplete": "list", "aria-label": "The other report", autocomplete: "off",
    placeholder: "Its words, its id or its address", maxlength: "500",
  });
  const found = h("ul.found", { id, role: "listbox", "aria-label": "Reports found" });
  const said = h("p.faint", { role: "status" });
  const search = h("div.finder", field, found, said);
  const place = h("div", search);
  const mark = (index) => {
    at = index;
    [...found.children].forEach((item, place) => item.setAttribute("aria-selected", String(place === at)));
    const item = found.children[at];
    item ? field.setAttribute("aria-activedescendant", item.id) : field.removeAttribute("aria-activedescendant");
    item?.scrollIntoView({ block: "nearest" });
  };
  const draw = (items, empty) => {
    rows = items;
    fill(found, rows.map((row, index) => h("li", { id: `${id}-${index}`, role: "option", "aria-selected": "false", onclick: () => choose(row) }, brief(row))));
    field.setAttribute("aria-expanded", String(rows.length > 0));
    fill(said, rows.length ? "" : empty);
    mark(rows.length ? 0 : -1);
  };
  const choose = (row) => {
    fill(place, h("div.chosen", h("div", brief(row)), h("button.button.quiet", { type: "button", onclick: () => { fill(place, search); pick(null); field.focus(); } }, "Another")));
    pick(row);
  };
  const look = async () => {
    const mine = (turn += 1);
    const text = field.value.trim();
    try {
      const items = await find(report, text);
      if (mine === turn) draw(items, text ? "No other report has these words." : "There is no other report.");
    } catch (error) {
      if (mine === turn) draw([], `The reports could not be searched: ${error.message}`);
    }
  };
  let waiting;
  field.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(look, 200); });
  field.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && rows.length) mark((at + step + rows.length) % rows.length);
    else if (event.key === "Enter" && rows[at]) choose(rows[at]);
    else if (event.key !== "Enter") return;
    event.preventDefault();
  });
  look();
  return place;
}

async function find(report, text) {
  const address = /\/reports\/([A-Za-z0-9_-]{1,64})/.exec(text)?.[1];
  if (address) return address === report.id ? [] : [await api.get(`/v1/reports/${address}`)];
  const given = { project: report.project, q: text, closed: "true", limit: FOUND_MAX + 4, sort: text ? undefined : "last_seen" };
  const page = await api.get(`/v1/reports${api.query(given)}`);
  const others = page.items.filter((row) => row.id !== report.id && row.state !== "merged_into").slice(0, FOUND_MAX);
  if (!others.length && /^[A-Za-z0-9_-]{8,64}$/.test(text) && text !== report.id) return [await api.get(`/v1/reports/${text}`)].filter((row) => row.project === report.project);
  return others;
}

/** A report in two lines: enough to know it by. */
export function brief(row) {
  return [
    h("span.line", priority(row.priority), h("span.title", { dir: "auto" }, row.title)),
    h("span.line.faint", state(row.state, ""), h("span", row.services.join(", ") || "no service"), h("span", plural(row.signal_count, "signal"))),
  ];
}

export const mergeForm = (report, context, given) =>
  wordForm({
    report, title: given ? "Merge into that report?" : "Merge into which report?", verb: "Merge", route: "merge_into", action: "merge", other: !given, given,
    sentence: (row) => [`All ${count(report.signal_count)} signals of this report, and those to come, go into `, quoted(row.title), ". This report closes and leads there. You can undo it."],
    body: (row) => ({ report_id: row.id }),
    done: (word, row) => ["Merged into ", link(row), "."],
  }, context);

export const apartForm = (report, context, given) =>
  wordForm({
    report, title: given ? "Never together with that report?" : "Never together with which report?", verb: "Keep apart", route: "never_together", action: "never_together", other: !given, given,
    sentence: (row) => ["This report and ", quoted(row.title), " are two problems: nothing puts them together until that is undone. No signal moves."],
    body: (row) => ({ report_id: row.id }),
    done: (word, row) => ["Kept apart from ", link(row), "."],
  }, context);

export const quoted = (text) => h("bdi.quoted", `“${text}”`);
export const link = (row) => h("a", { href: `/reports/${row.id}` }, quoted(row.title));
