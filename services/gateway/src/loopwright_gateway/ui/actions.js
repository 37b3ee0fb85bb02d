// What a person can do with a report, right where they read it. Never a modal; what cannot be undone says so.

import { h, fill } from "./dom.js";
import { short } from "./format.js";
import { apartForm, mergeForm } from "./asking.js";

const DISMISS = [
  ["1", "not_a_problem", "Not a problem"],
  ["2", "expected", "Expected"],
  ["3", "fixed", "Already fixed"],
  ["4", "wont_fix", "Won't fix"],
  ["5", "duplicate", "Duplicate"],
];
const SNOOZE = [
  ["1", { seconds: 3600 }, "1 hour"],
  ["2", { seconds: 8 * 3600 }, "8 hours"],
  ["3", { seconds: 24 * 3600 }, "1 day"],
  ["4", { seconds: 7 * 24 * 3600 }, "1 week"],
  ["5", { signals: 10 }, "10 more signals"],
  ["6", { signals: 100 }, "100 more signals"],
];

/** The buttons a report's state allows, and the place where one asks for more. */
export function actionBar(model, context) {
  const { report, change } = model;
  const allowed = new Set(report.actions);
  const place = h("div", { "aria-live": "polite" });
  if (context.role === "viewer") {
    context.register({}, new Set(), place);
    return h("p.note", "You may look. Acting needs a responder’s token, which an admin can make.");
  }
  const ask = (form) => {
    fill(place, form);
    place.querySelector("textarea, input, button")?.focus();
  };
  const asks = {
    dismiss: () => ask(choices("Why is there nothing to do?", DISMISS, (reason) => context.act("dismiss", { reason }), place)),
    done: () => context.act("dismiss", { reason: "fixed" }),
    snooze: () => ask(choices("Until when?", SNOOZE, (until) => context.act("snooze", until), place)),
    merge: () => ask(confirmMerge(change, context, place)),
    decline: () => ask(sentence("Why is this change not wanted?", "Decline", (comment) => context.change("decline", { comment }), place, "danger")),
    request_changes: () => ask(sentence("What should be different?", "Ask for it", (comment) => context.change("request_changes", { comment }), place)),
    provide_input: () => {
      const shown = document.querySelector("#answer textarea"); // where it is asked for, the form is there already
      shown ? shown.focus() : ask(inputForm(context, place));
    },
    merge_into: () => ask(mergeForm(report, context)),
    never_together: () => ask(apartForm(report, context)),
    split: () => context.showSignals(),
    move: () => context.showSignals(),
  };
  const does = (name) => (asks[name] ?? (() => context.act(name, {})))();
  asks.menu = () => ask(choices("What to do?", menu(allowed), does, place));
  context.register(asks, allowed, place);
  const button = (name, label, key, kind = "") => allowed.has(name) && h(`button.button${kind}`, { type: "button", onclick: () => does(name) }, label, key && h("kbd", key));
  const buttons = [
    button("merge", change?.pull_request ? `Merge ${short(change.pull_request.head_commit)}` : "Merge", "m", ".primary"),
    button("request_changes", "Request changes"),
    button("decline", "Decline"),
    button("start_work", "Start work", null, ".primary"),
    button("provide_input", "Answer", "i", report.state === "needs_input" ? ".primary" : ""),
    button("reopen", "Reopen"),
    button("snooze", "Snooze", "s"),
    button("dismiss", "Dismiss", "d"),
    allowed.size > 0 && h("button.button.quiet", { type: "button", onclick: asks.menu }, "More", h("kbd", "a")),
  ].filter(Boolean);
  return h("div", h("div.actions", buttons), place);
}

const MENU = [
  ["merge", "Merge"], ["request_changes", "Request changes"], ["decline", "Decline"], ["start_work", "Start work"], ["provide_input", "Answer"], ["reopen", "Reopen"],
  ["snooze", "Snooze"], ["dismiss", "Dismiss"], ["done", "Mark done"], ["suppress", "Keep quiet for good"], ["merge_into", "Merge into…"], ["never_together", "Never together with…"],
  ["split", "Split signals off"], ["move", "Move signals to…"],
];

/** Takes the form away, wherever a redraw has put it. */
const close = (event) => event.target.closest(".input-form").remove();

/** All that is allowed, each with a key of its own. */
function menu(allowed) {
  const shown = MENU.filter(([name]) => allowed.has(name === "done" ? "dismiss" : name));
  return shown.map(([name, label], index) => ["123456789bcvxyz"[index], name, label]);
}

function choices(question, options, choose, place) {
  return h(
    "div.input-form",
    { role: "group", "aria-label": question },
    h("strong", question),
    h("div.choices", options.map(([key, value, label]) => h("button.button", { type: "button", "data-key": key, onclick: () => choose(value) }, label, h("kbd", key))),
      h("button.button.quiet", { type: "button", onclick: close }, "Cancel", h("kbd", "esc"))),
  );
}

function sentence(question, verb, send, place, kind = "") {
  const text = h("textarea", { "aria-label": question, maxlength: "2000", required: true });
  return h(
    "form.input-form",
    { onsubmit: (event) => { event.preventDefault(); if (text.value.trim()) send(text.value.trim()); } },
    h("label", question, text),
    h("div.actions", h(`button.button${kind ? `.${kind}` : ".primary"}`, { type: "submit" }, verb), place && h("button.button.quiet", { type: "button", onclick: close }, "Cancel", h("kbd", "esc"))),
  );
}

export function inputForm(context, place) {
  return sentence("What should be known?", "Send and look again", (text) => context.act("provide_input", { text }), place);
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
      h("button.button.quiet", { type: "button", onclick: close }, "Cancel", h("kbd", "esc")),
    ),
  );
}
