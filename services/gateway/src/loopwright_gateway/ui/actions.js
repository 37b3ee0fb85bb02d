// What a person can do with a report, right where they read it. Never a modal; what cannot be undone says so.

import { h, fill } from "./dom.js";
import { short } from "./format.js";

const DISMISS = [
  ["1", "not_a_problem", "Not a problem"],
  ["2", "expected", "Expected"],
  ["3", "fixed", "Already fixed"],
  ["4", "wont_fix", "Won't fix"],
  ["5", "duplicate", "Duplicate"],
];
const SNOOZE = [
  ["1", "1 hour", 3600],
  ["2", "8 hours", 8 * 3600],
  ["3", "1 day", 24 * 3600],
  ["4", "1 week", 7 * 24 * 3600],
];

/** The buttons a report's state allows, and the place where one asks for more. */
export function actionBar(model, context) {
  const { report, change } = model;
  const allowed = new Set(report.actions);
  const place = h("div");
  const ask = (form) => {
    fill(place, form);
    place.querySelector("textarea, button")?.focus();
  };
  const asks = {
    dismiss: () => ask(choices("Why is there nothing to do?", DISMISS, (reason) => context.act("dismiss", { reason }), place)),
    snooze: () => ask(choices("Until when?", SNOOZE, (seconds) => context.act("snooze", { seconds }), place)),
    merge: () => ask(confirmMerge(change, context, place)),
    decline: () => ask(sentence("Why is this change not wanted?", "Decline", (comment) => context.change("decline", { comment }), place, "danger")),
    request_changes: () => ask(sentence("What should be different?", "Ask for it", (comment) => context.change("request_changes", { comment }), place)),
    provide_input: () => ask(inputForm(context, place)),
  };
  context.register(asks, allowed, place);
  const button = (name, label, key, kind = "") =>
    allowed.has(name) && h(`button.button${kind}`, { type: "button", onclick: () => (asks[name] ?? (() => context.act(name, {})))() }, label, key && h("kbd", key));
  const buttons = [
    button("merge", change?.pull_request ? `Merge ${short(change.pull_request.head_commit)}` : "Merge", "m", ".primary"),
    button("request_changes", "Request changes"),
    button("decline", "Decline"),
    button("start_work", "Start work", null, ".primary"),
    button("provide_input", "Answer", "i", report.state === "needs_input" ? ".primary" : ""),
    button("reopen", "Reopen"),
    button("snooze", "Snooze", "s"),
    button("dismiss", "Dismiss", "d"),
  ].filter(Boolean);
  return h("div", h("div.actions", buttons), place);
}

function choices(question, options, choose, place) {
  const form = h(
    "div.input-form",
    { role: "group", "aria-label": question },
    h("strong", question),
    h("div.choices", options.map(([key, value, label]) => h("button.button", { type: "button", "data-key": key, onclick: () => choose(typeof label === "number" ? label : value) }, typeof label === "number" ? value : label, h("kbd", key))),
      h("button.button", { type: "button", onclick: () => fill(place) }, "Cancel", h("kbd", "esc"))),
  );
  return form;
}

function sentence(question, verb, send, place, kind = "") {
  const text = h("textarea", { "aria-label": question, maxlength: "2000", required: true });
  return h(
    "form.input-form",
    { onsubmit: (event) => { event.preventDefault(); if (text.value.trim()) send(text.value.trim()); } },
    h("label", question, text),
    h("div.actions", h(`button.button.primary${kind ? `.${kind}` : ""}`, { type: "submit" }, verb), h("button.button", { type: "button", onclick: () => fill(place) }, "Cancel", h("kbd", "esc"))),
  );
}

export function inputForm(context, place) {
  return sentence("What should be known?", "Send and look again", (text) => context.act("provide_input", { text }), place ?? h("div"));
}

function confirmMerge(change, context, place) {
  const head = change?.pull_request?.head_commit;
  return h(
    "div.input-form",
    { role: "group", "aria-label": "Merge" },
    h("p", "Merges ", h("code", short(head)), " into ", h("code", change?.pull_request?.base ?? "main"), " in your name. A deploy of it starts the measurement."),
    h(
      "div.actions",
      h("button.button.primary", { type: "button", onclick: () => context.change("merge", { expected_head: head }) }, "Merge now", h("kbd", "enter")),
      h("button.button", { type: "button", onclick: () => fill(place) }, "Cancel", h("kbd", "esc")),
    ),
  );
}
