// Why signals are together, and people's last word on it: fingerprints with their nearest neighbours, signals, words said, similar reports.
// A panel lives as long as its report is open, over redraws: what is chosen, open or half typed stays.

import { h, fill } from "./dom.js";
import * as api from "./api.js";
import { brief as cut, count, duration, plural, since, short, words as spaced } from "./format.js";
import { state } from "./list.js";
import { apartForm, link, mergeForm, quoted, wordForm, words as fetchWords } from "./asking.js";

const FINGERPRINTS = 20;
const SIGNALS = 10;
const PAGE_MAX = 200; // the API gives no more at once
const NEIGHBOURS = 5;
const QUIET_MS = 2000; // a flood changes a report many times a second; what is open is read again at most this often

const RULES = {
  fingerprint: "same fingerprint", explicit_fingerprint: "fingerprint set by the sender", similarity: "joined by likeness", about_report: "says which report it is about",
  new: "nothing like it was known", recurrence: "came back after a fix", person: "a person’s word",
};
/** Figures of 0 to 1, by the names a person understands, in the order shown. */
const BARS = [["probability", "same problem"], ["score", "score"], ["cosine", "alike in meaning"], ["words_cosine", "shared words"], ["rarest", "rarest shared word"]];
/** What else spoke for it: the matcher's own reasons. */
const SPOKE = {
  title_share_new: "titles share rare words", title_share_old: "titles share rare words", title_cosine: "titles are alike", title_in_old: "its title’s words are in the text",
  title_in_new: "its title’s words are in the text", rarest_2: "two rare words shared", rarest_4: "four rare words shared", title_rarest: "titles share a rare word",
  names: "same things named", title_names: "a name of a title is in the text", quotes: "same quotes", lines: "same lines", errors: "same error", errors_share: "same error",
  title_letters: "titles spelled alike", code_cosine: "code is alike", words_share_old: "same words",
};

export class Panel {
  constructor(report, context) {
    Object.assign(this, { report, context, rows: new Map(), chosen: new Map(), signals: new Map(), cursor: null, loaded: false, reports: new Map() });
    this.head = h("span.faint");
    this.bar = h("div.chosen-bar", { role: "group", "aria-label": "What to do with what is chosen", hidden: true });
    this.place = h("div.place");
    this.list = h("ul.fingerprints");
    this.more = h("div");
    this.box = h("details.why-together", h("summary", "Why are these together?"), h("div.why-body", this.bar, this.place, this.list, this.more));
    this.similar = h("div.similar");
    this.said = h("div.said");
    this.element = h("section.section.grouping", { id: "signals" }, h("h2", "Why together", this.head), this.box, this.similar, this.said);
    this.box.addEventListener("toggle", () => { if (this.box.open && !this.loaded) this.load(); });
    this.update(report, context);
    this.loadWords();
  }

  get acts() {
    return this.context.role !== "viewer";
  }

  may(action) {
    return this.acts && this.report.actions.includes(action);
  }

  /** The report as it is now. What is shown is read again when it changed. */
  update(report, context) {
    const changed = ["version", "signal_count", "last_seen"].some((name) => report[name] !== this.report[name]);
    Object.assign(this, { report, context });
    fill(this.head, plural(report.signal_count, "signal"));
    if (changed) this.refresh();
  }

  refresh() {
    if (this.waiting) return;
    this.waiting = setTimeout(async () => {
      this.waiting = null;
      if (!this.element.isConnected) return;
      await Promise.all([this.loaded && this.load(), this.loadWords()]);
    }, this.read && Date.now() - this.read < QUIET_MS ? QUIET_MS : 0);
  }

  async open() {
    this.box.open = true;
    if (!this.loaded) await this.load();
    this.element.scrollIntoView({ block: "start" });
    this.box.querySelector("summary").focus({ preventScroll: true });
  }

  async load(cursor) {
    this.loaded = true;
    this.read = Date.now();
    if (!this.rows.size) fill(this.more, h("p.faint", "Loading the reasons…"));
    try {
      const limit = cursor ? FINGERPRINTS : Math.min(PAGE_MAX, this.rows.size + FINGERPRINTS); // more than are shown, for those that came meanwhile
      const page = await api.get(`/v1/reports/${this.report.id}/fingerprints${api.query({ cursor, limit })}`);
      if (!cursor && !page.next_cursor) this.keep(new Set(page.items.map((item) => item.fingerprint)));
      this.reports.clear();
      for (const item of page.items) this.row(item);
      this.cursor = page.next_cursor;
      fill(this.more, this.cursor && h("button.button", { type: "button", onclick: () => this.load(this.cursor) }, "More fingerprints"),
        !this.rows.size && h("p.faint", "No signal is here any more."));
      this.drawHead();
      this.drawBar();
      this.drawSimilar(page.items);
    } catch (error) {
      this.loaded = this.rows.size > 0;
      fill(this.more, h("div.note.error", { role: "alert" }, h("p", `The reasons could not be read: ${error.message}`), h("button.button", { type: "button", onclick: () => this.load(cursor) }, "Try again")));
    }
  }

  /** Takes away what has left the report, out of what is chosen too. */
  keep(there) {
    for (const [key, row] of this.rows) {
      if (there.has(key)) continue;
      row.element.remove();
      this.rows.delete(key);
      this.chosen.delete(key);
      for (const [id, item] of this.signals) if (item.fingerprint === key) this.signals.delete(id);
    }
  }

  row(item) {
    const known = this.rows.get(item.fingerprint);
    if (known) {
      const more = item.signals - known.item.signals;
      if (more && known.shown) more > 0 ? known.stale() : known.load(); // what has left must not be offered
      known.draw(item);
      return;
    }
    const row = new Row(item, this);
    this.rows.set(item.fingerprint, row);
    this.list.append(row.element);
  }

  drawHead() {
    const many = `${count(this.rows.size)}${this.cursor ? " or more" : ""}`;
    fill(this.head, `${plural(this.report.signal_count, "signal")} of ${many} ${this.rows.size === 1 ? "fingerprint" : "fingerprints"}`);
  }

  chose() {
    this.place.replaceChildren();
    this.drawBar();
  }

  drawBar() {
    const sum = [...this.chosen.values()].reduce((total, item) => total + item.signals, 0);
    const parts = [
      this.chosen.size > 0 && `${plural(this.chosen.size, "fingerprint")} (${plural(sum, "signal")}, and those to come)`,
      this.signals.size > 0 && `${plural(this.signals.size, "signal")} alone`,
    ].filter(Boolean);
    this.bar.hidden = !parts.length;
    const all = !this.cursor && this.rows.size > 0 && this.chosen.size === this.rows.size;
    fill(this.bar,
      h("span.what", parts.join(" and "), " chosen"),
      all ? h("span.faint", "That is all of the report: merge it instead.") : [
        this.may("split") && h("button.button", { type: "button", onclick: () => this.ask(this.splitForm(parts)) }, "Split off"),
        this.may("move") && h("button.button", { type: "button", onclick: () => this.ask(this.moveForm(parts)) }, "Move to…"),
      ],
      h("button.button.quiet", { type: "button", onclick: () => this.clear() }, "Choose none"),
    );
  }

  clear() {
    this.chosen.clear();
    this.signals.clear();
    for (const row of this.rows.values()) row.mark();
    this.chose();
  }

  ask(form) {
    fill(this.place, form);
    form.querySelector("input")?.focus();
  }

  named() {
    return {
      ...(this.chosen.size ? { fingerprints: [...this.chosen.keys()] } : {}),
      ...(this.signals.size ? { signal_ids: [...this.signals.keys()] } : {}),
    };
  }

  /** The words go out with the report's version as it is shown then; what was chosen is let go once it was asked for. */
  saying() {
    return { ...this.context, asked: () => { this.chosen.clear(); this.signals.clear(); for (const row of this.rows.values()) row.mark(); this.bar.hidden = true; this.refreshNow(); } };
  }

  /** Takes away the form that is open, if one is. */
  cancel() {
    const form = this.element.querySelector("form");
    form?.remove();
    return Boolean(form);
  }

  refreshNow() {
    return Promise.all([this.loaded && this.load(), this.loadWords(), this.context.lookAgain()]);
  }

  splitForm(parts) {
    const body = this.named();
    const alone = !body.fingerprints;
    return wordForm({
      report: this.report, title: "Split off into a report of its own?", verb: "Split off", route: "split", action: "split",
      sentence: () => `${parts.join(" and ")} ${this.together() ? "leaves" : "leave"} this report and open${this.together() ? "s" : ""} one of ${this.together() ? "its" : "their"} own. ${alone ? "What comes later of the same fingerprint stays here." : "Nothing puts them together again until that is undone."}`,
      body: () => body,
      done: (word) => ["Done. ", word.new_report_id ? h("a", { href: `/reports/${word.new_report_id}` }, "Open the new report") : "The new report is in the list."],
    }, this.saying());
  }

  together() {
    return this.chosen.size + this.signals.size === 1;
  }

  moveForm(parts) {
    const body = this.named();
    return wordForm({
      report: this.report, title: "Move to which report?", verb: "Move", route: "move", action: "move", other: true,
      sentence: (row) => [`${parts.join(" and ")} ${this.together() ? "goes" : "go"} to `, quoted(row.title), body.fingerprints ? ", and not back here by itself." : ". What comes later of the same fingerprint stays here.", " You can undo it."],
      body: (row) => ({ ...body, report_id: row.id }),
      done: (word, row) => ["Moved to ", link(row), "."],
    }, this.saying());
  }

  // What people said

  async loadWords() {
    let words;
    try {
      words = await fetchWords(this.report.id);
    } catch (error) {
      this.drawnWords = null;
      return void fill(this.said, h("p.note.error", { role: "alert" }, `What was said about the grouping could not be read: ${error.message}`));
    }
    const drawn = JSON.stringify(words);
    if (drawn === this.drawnWords || this.said.querySelector("form")) return; // a form that is being filled in is not drawn over
    // What came of a word has changed the report: who acts on what is shown here must act on the version that goes with it.
    if (this.drawnWords) await this.context.lookAgain();
    this.drawnWords = drawn;
    fill(this.said, words.length > 0 && [h("h3", "Said about the grouping"), h("ul.words-said", words.map((word) => this.word(word, words)))]);
  }

  word(word, words) {
    const place = h("div");
    const tag = h(`span.tag.word-${word.state}`, word.state);
    const parts = [word.fingerprints.length > 0 && plural(word.fingerprints.length, "fingerprint"), word.signals > 0 && plural(word.signals, "signal")].filter(Boolean);
    const undo = word.undoable && this.acts && h("button.button.small", { type: "button", onclick: () => fill(place, this.undoForm(word)) && place.querySelector("input").focus() }, "Undo");
    return h(
      "li",
      h("div.flow", tag, h("strong", word.action === "undo" ? this.takenBack(word, words) : this.sentence(word)), parts.length > 0 && h("span", parts.join(", ")), undo),
      h("div.why", word.actor.replace(/^person:/, ""), ", ", since(word.at, " ago"), word.reason && [": ", quoted(word.reason)]),
      word.refusal && h("p.note.error", `Not done: ${word.refusal}`),
      place,
    );
  }

  /** What was said, in words. What was not carried out is told as what was asked. */
  sentence({ action, state: stage, report_id: id, other_report_id: other, new_report_id: opened }) {
    const here = id === this.report.id;
    const [merged, split, moved] = stage === "done" || stage === "undone" ? ["Merged", "Split off", "Moved"] : ["Merge", "Split off", "Move"];
    switch (action) {
      case "merge": return here ? [merged, " ", this.titled(other), " into this"] : [merged, " into ", this.titled(id)];
      case "split": return here ? [split, " into ", opened ? this.titled(opened) : "a report of its own"] : [split, " from ", this.titled(id)];
      case "move": return here ? [moved, " to ", this.titled(other)] : [moved, " here from ", this.titled(id)];
      case "never_together": return ["Never together with ", this.titled(here ? other : id)];
      default: return spaced(action);
    }
  }

  takenBack(word, words) {
    const said = words.find((item) => item.command_id === word.undoes);
    return [word.state === "done" ? "Taken back: " : "Take back: ", said ? this.sentence({ ...said, state: "asked" }) : "what was said before"];
  }

  /** A link that is called by the report's title as soon as that is known. */
  titled(id) {
    if (!id) return "another report";
    const anchor = h("a", { href: `/reports/${id}` }, "another report");
    this.lookUp(id).then((row) => row && fill(anchor, quoted(row.title)));
    return anchor;
  }

  lookUp(id) {
    if (!this.reports.has(id)) this.reports.set(id, api.get(`/v1/reports/${id}`).catch(() => void this.reports.delete(id)));
    return this.reports.get(id);
  }

  undoForm(word) {
    const what = {
      merge: "The two reports come apart again. What joined since stays where it is.",
      split: "What was split off comes back to where it was, as far as it still is there.",
      move: "What was moved goes back to where it was, as far as it still is there.",
      never_together: "The two may be put together again.",
    }[word.action];
    return wordForm({
      report: this.report, title: "Take this back?", verb: "Undo", route: "undo", action: "undo", undoes: word.command_id,
      sentence: () => what ?? "It no longer counts.", body: () => ({ command_id: word.command_id }), done: () => "Taken back.",
    }, this.saying());
  }

  // Reports that may be the same problem

  async drawSimilar(items) {
    const ids = [...new Set(items.flatMap((item) => item.similar ?? []))].filter((id) => id !== this.report.id).slice(0, 10);
    const rows = (await Promise.all(ids.map((id) => this.lookUp(id)))).filter((row) => row && row.id !== this.report.id && row.state !== "merged_into");
    const drawn = JSON.stringify(rows.map((row) => [row.id, row.state]));
    if (drawn === this.drawnSimilar || this.similar.querySelector("form")) return;
    this.drawnSimilar = drawn;
    fill(this.similar, rows.length > 0 && [h("h3", "Similar reports"), h("p.why.faint", "They may be the same problem; the grouping was not sure enough to join them."), h("ul.similar-reports", rows.map((row) => this.similarRow(row)))]);
  }

  similarRow(row) {
    const place = h("div");
    const ask = (make) => () => { fill(place, make(this.report, this.saying(), row)); place.querySelector("input")?.focus(); };
    return h(
      "li",
      h("div.flow", state(row.state, ""), h("a", { href: `/reports/${row.id}` }, quoted(row.title)), h("span", plural(row.signal_count, "signal")),
        this.may("merge_into") && h("button.button.small", { type: "button", onclick: ask(mergeForm) }, "Merge into it"),
        this.may("never_together") && h("button.button.small", { type: "button", onclick: ask(apartForm) }, "Never together")),
      place,
    );
  }
}

/** A fingerprint: one line; opened, its nearest neighbours with the figures that decided, and its signals. */
class Row {
  constructor(item, panel) {
    this.panel = panel;
    this.open = false;
    this.shown = 0;
    // What was counted before fingerprints were kept has none to name: its signals can be chosen one by one.
    this.box = panel.acts && item.fingerprint !== "" && h("input", { type: "checkbox", onchange: (event) => this.choose(event.target.checked) });
    this.opener = h("button.opener", { type: "button", "aria-expanded": "false", onclick: () => this.toggle() });
    this.body = h("div.row-body", { hidden: true });
    this.list = h("ul.signals");
    this.element = h("li", h("div.fingerprint", this.box, this.opener), this.body);
    this.draw(item);
  }

  draw(item) {
    this.item = item;
    if (this.panel.chosen.has(item.fingerprint)) this.panel.chosen.set(item.fingerprint, item);
    this.box && this.box.setAttribute("aria-label", `Choose the fingerprint ${item.title}`);
    fill(
      this.opener,
      h("span.title", { dir: "auto" }, item.title),
      h("span.facts-line",
        h("span.tag", spaced(item.kind)), item.rule && h("span", RULES[item.rule] ?? spaced(item.rule)), h("span.num-text", plural(item.signals, "signal")),
        h("span", "first ", since(item.first_seen, " ago")), h("span", "last ", since(item.last_seen, " ago"))),
    );
  }

  mark() {
    if (!this.box) return;
    this.box.checked = this.panel.chosen.has(this.item.fingerprint);
    for (const input of this.list.querySelectorAll("input")) {
      input.disabled = this.box.checked;
      input.checked = this.box.checked || this.panel.signals.has(input.dataset.signal);
    }
  }

  choose(on) {
    const { chosen, signals } = this.panel;
    on ? chosen.set(this.item.fingerprint, this.item) : chosen.delete(this.item.fingerprint);
    if (on) for (const [id, item] of signals) if (item.fingerprint === this.item.fingerprint) signals.delete(id);
    this.mark();
    this.panel.chose();
  }

  toggle() {
    this.open = !this.open;
    this.opener.setAttribute("aria-expanded", String(this.open));
    this.body.hidden = !this.open;
    if (this.open && !this.shown) this.load();
  }

  /** More signals came: said, not pushed into what is being read. */
  stale() {
    if (this.news?.isConnected) return; // said already
    this.news = h("button.button.small", { type: "button", onclick: () => this.load() }, "More came: show");
    this.list.before(this.news);
  }

  async load(cursor) {
    if (!this.shown) fill(this.body, h("p.faint", "Loading…"));
    try {
      const asked = `${api.query({ cursor, limit: SIGNALS })}&fingerprint=${encodeURIComponent(this.item.fingerprint)}`; // an empty one names those without
      const page = await api.get(`/v1/reports/${this.panel.report.id}/explain${asked}`);
      if (!cursor) {
        this.list.replaceChildren();
        this.shown = 0;
        const decision = page.items.find((entry) => entry.decision?.neighbours?.length)?.decision ?? page.items[0]?.decision;
        fill(this.body, this.why(decision), this.list);
      }
      this.body.querySelector(":scope > .more")?.remove();
      for (const entry of page.items) this.list.append(this.signal(entry));
      this.shown += page.items.length;
      this.mark();
      if (page.next_cursor) {
        const rest = Math.max(0, this.item.signals - this.shown);
        this.body.append(h("button.button.small.more", { type: "button", onclick: () => this.load(page.next_cursor) }, `More signals${rest ? ` (${count(rest)})` : ""}`));
      }
    } catch (error) {
      this.body.append(h("p.note.error", { role: "alert" }, `They could not be read: ${error.message}`));
      if (!cursor) this.shown = 0;
    }
  }

  why(decision) {
    if (!decision) return h("p.faint", "How it was decided is no longer kept.");
    const near = (decision.neighbours ?? []).slice(0, NEIGHBOURS);
    return h(
      "div.because",
      h("p", cut(decision.reason), h("span.faint", ` (grouping ${decision.grouping_version}${decision.degraded ? ", without the embedding model" : ""})`)),
      near.length > 0 && [h("h4", "Nearest earlier signals"), h("ul.neighbours", near.map((item) => this.neighbour(item)))],
    );
  }

  neighbour(item) {
    const features = { cosine: item.similarity, ...item.features };
    const here = item.report_id === this.panel.report.id;
    return h(
      "li",
      h("div", here ? quoted(item.title) : h("a", { href: `/reports/${item.report_id}` }, quoted(item.title)), " ", h("span.faint", spaced(item.kind), here && ", in this report")),
      h("div.figures", BARS.filter(([name]) => features[name] != null).map(([name, label]) => figure(label, features[name]))),
      h("div.why.faint", facts(features).join(" · ")),
    );
  }

  signal({ signal, decision, fingerprint, moved }) {
    const { panel } = this;
    const own = decision && decision.reason !== this.item.reason ? cut(decision.reason) : "";
    return h(
      "li",
      h("div.signal-line",
        panel.acts && h("input", {
          type: "checkbox", "data-signal": signal.id, "aria-label": `Choose the signal ${signal.title}`,
          onchange: (event) => {
            event.target.checked ? panel.signals.set(signal.id, { fingerprint: fingerprint || this.item.fingerprint }) : panel.signals.delete(signal.id);
            panel.chose();
          },
        }),
        h("div",
          signal.title !== this.item.title && h("div.prose", { dir: "auto" }, signal.title), // said above for those that are the same
          h("div.eyebrow", h("span", spaced(signal.kind)), signal.source && h("span", signal.source), signal.service && h("span", signal.service), since(signal.occurred_at, " ago"), signal.release && h("code", short(signal.release))),
          moved && h("div.why.moved", moved.action === "split" ? "Split off" : moved.action === "merge" ? "Merged" : "Moved", " here from ", panel.titled(moved.from_report_id), ` by ${moved.actor.replace(/^person:/, "")}, `, since(moved.at, " ago")),
          own && h("div.why", own)),
      ),
    );
  }
}

/** A figure of 0 to 1: its name, a bar, the number. */
function figure(label, value) {
  const fill_ = h("i");
  fill_.style.width = `${Math.round(Math.min(1, Math.max(0, value)) * 100)}%`; // through the object model: the page's policy allows no style attributes
  return h("span.figure", h("span", label), h("span.score", { "aria-hidden": "true" }, fill_), h("span.num", value.toFixed(2)));
}

function facts(features) {
  const found = [];
  for (const thing of ["kind", "service", "release"]) if (features[`same_${thing}`]) found.push(`same ${thing}`); // not "other": one of the two may just not name its own
  if (features.onset_gap_seconds != null) found.push(`${duration(features.onset_gap_seconds)} apart`);
  if (features.shared_names != null) found.push(`shared names weigh ${features.shared_names.toFixed(1)}`);
  const names = Object.keys(features).filter((name) => name.startsWith("name:")).map((name) => name.slice(5));
  if (names.length) found.push(`both name ${names.join(", ")}`);
  const spoke = Object.entries(SPOKE).filter(([name]) => features[name] > 0).map(([, text]) => text);
  found.push(...new Set(spoke));
  return found;
}
