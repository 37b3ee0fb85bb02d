// A report, read like a good incident note: verdict, what and who, cause, change, measurement, timeline. Every claim opens its observation.

import { h, fill } from "./dom.js";
import * as chart from "./chart.js";
import * as diff from "./diff.js";
import { since, brief, count, percent, money, duration, short, plural, words } from "./format.js";
import { priority, state } from "./list.js";
import { actionBar } from "./actions.js";

// What these wait for is a sentence of its own further down.
const SAID_BELOW = new Set(["needs_input", "actionable"]);

/** Draws a report: the API's detail with its timeline and rates beside it. */
export function render(report, timelineEntries, rates, context) {
  const { investigation, change, measurement } = report;
  const model = { report, investigation, change, measurement, measurementStarted: report.measurement_started, rates };
  const cite = citer(investigation, context);
  return h(
    "article.report",
    { "aria-labelledby": "report-title" },
    h("a.button.back", { href: context.backHref }, "‹ All reports"),
    h(
      "header",
      h(
        "div.eyebrow",
        priority(report.priority),
        state(report.state, SAID_BELOW.has(report.state) ? "" : report.waits_for, report.waits_for_person),
        h("span", report.services.join(", ") || "no service"),
        h("span", "last seen ", since(report.last_seen, " ago")),
        report.recurrence_of && h("a", { href: `/reports/${report.recurrence_of}` }, "recurrence of an earlier report"),
        report.merged_into && h("a", { href: `/reports/${report.merged_into}` }, "merged into another report"),
        report.recurrences.map((id) => h("a", { href: `/reports/${id}` }, "it came back")),
      ),
      h("h1", { id: "report-title" }, report.title),
      lead(model),
      needs(report.promotion),
      actionBar(model, context),
    ),
    question(model, context),
    what(model),
    investigation && cause(investigation, cite),
    change && changeSection(model, context, cite),
    (measurement || model.measurementStarted) && measured(model),
    context.panel.element,
    timeline(timelineEntries),
  );
}

function lead({ report, investigation, measurement }) {
  if (measurement) {
    return h("p.lead", outcome(measurement.verdict), " ", brief(measurement.reason));
  }
  if (!investigation) {
    const text = { gathering: "Signals are gathering; it will be looked into as soon as enough has come in.", ready: "Waiting to be investigated." };
    return h("p.lead.soft", text[report.state] ?? "Being looked into: the code, the deploys and the numbers.");
  }
  const [first] = investigation.suspects ?? [];
  return h(
    "p.lead",
    brief(firstSentence(investigation.summary || investigation.reason)),
    first && h("span.cause", "Likely cause: ", h("code", short(first.commit)), ` “${first.title}” by ${first.author}. `),
    " ",
    h("span.confidence", `${words(investigation.verdict)}, confidence ${percent(investigation.confidence)}`),
  );
}

/** How far a gathering report is from being looked into: each thing that is needed and how much of it there is. */
function needs(promotion) {
  if (!promotion) return null;
  const live = promotion.parts.find((part) => part.name === "live_signals");
  const parts = promotion.parts.filter((part) => part.needed > 0 && (part !== live || part.value < part.needed));
  return h(
    "div.needs",
    h("dl.facts", { "aria-label": "What it needs before it is looked into" }, parts.map((part) =>
      fact(NEEDED[part.name] ?? words(part.name), [amount(part.value), h("span.faint", ` of ${amount(part.needed)}`)], [bar(Math.min(1, part.value / part.needed)), part.value >= part.needed && " reached"]),
    )),
    promotion.at && h("p.faint", "A burst may still gather; it is looked into ", since(promotion.at), "."),
    live && live.value < live.needed && h("p.faint", "So far there is only history that was loaded, which is not looked into by itself, or kinds that do not count."),
  );
}

const NEEDED = { live_signals: "Live signals", weight: "Weight", signals: "Signals", people: "People" };

/** At most three decimals, rounded down, as the reason says it: what is short of what is needed must not look as if it were not. */
const amount = (value) => String(Math.floor(value * 1000 + 1e-6) / 1000);

/** The first sentence: a full stop, a space, and what begins like a sentence. */
function firstSentence(text) {
  const end = text.search(/[.!?]\s+(?=[A-Z0-9“])/);
  return end < 0 ? text : text.slice(0, end + 1);
}

function question({ report, investigation }, context) {
  if (report.state !== "needs_input" || !report.question) return null;
  return h("section.section", { id: "answer" }, h("div.note.ask", h("strong", "Waits for you: "), report.question), context.role !== "viewer" && context.inputForm());
}

function fact(term, value, note) {
  return h("div.fact", h("dt", term), h("dd", value, note && h("small", " ", note)));
}

function what(model) {
  const { report, investigation, rates } = model;
  return h(
    "section.section",
    h("h2", "What happened"),
    h(
      "dl.facts",
      fact("Signals", count(report.signal_count), Object.entries(report.kinds).map(([kind, number]) => `${count(number)} ${words(kind)}${number === 1 ? "" : "s"}`).join(", ")),
      fact("People", count(report.people_count)),
      rates?.share != null && fact("Share of requests", percent(rates.share)),
      fact("First seen", since(report.first_seen, " ago")),
      fact("Releases", Object.keys(report.releases).length ? Object.keys(report.releases).slice(0, 3).map(short).join(", ") : "not said"),
    ),
    rates && rates.points.length > 0 && chart.timeline(rates.points, rates.deploys, rates),
    investigation?.priority_factors?.length > 0 &&
      h(
        "details",
        h("summary", `Why ${investigation.priority}`),
        h("div.table-scroll", h(
          "table.plain",
          h("tbody", investigation.priority_factors.map((factor) => h("tr", h("td", words(factor.name)), h("td", factor.value), h("td.num", `${factor.points > 0 ? "+" : ""}${factor.points}`)))),
        )),
      ),
  );
}

/** Small numbers that open the observation a statement rests on, in place. */
function citer(investigation, context) {
  const evidence = new Map((investigation?.evidence ?? []).map((item) => [item.id, item]));
  return (ids, host) =>
    (ids ?? []).filter((id) => evidence.has(id)).map((id) => {
      const button = h("button.cite", { type: "button", "aria-expanded": "false", title: evidence.get(id).question }, id.replace(/^e/, ""));
      button.addEventListener("click", () => {
        const open = button.getAttribute("aria-expanded") === "true";
        button.setAttribute("aria-expanded", String(!open));
        const place = host?.() ?? button.parentElement;
        place.querySelector(`[data-observation="${CSS.escape(id)}"]`)?.remove();
        if (!open) place.append(observation(evidence.get(id)));
        context.opened(open ? null : id);
      });
      button.dataset.cite = id;
      return button;
    });
}

function observation(item) {
  return h(
    "div.observation",
    { "data-observation": item.id },
    h(
      "dl",
      h("dt", "asked"), h("dd", item.question),
      item.window && [h("dt", "window"), h("dd", item.window)],
      h("dt", "kind"), h("dd.mono", item.kind),
    ),
    h("pre.block.wrap", item.answer || "(no answer)"),
  );
}

function cause(investigation, cite) {
  const [first, ...others] = investigation.suspects ?? [];
  return h(
    "section.section",
    h("h2", "Cause", h("span.faint", investigation.repository || "no repository configured")),
    first && suspect(first, cite, true),
    (investigation.suspect_lines ?? []).slice(0, 2).map((lines) =>
      h("div", h("h3", h("code", `${lines.file}:${lines.start}`), h("span.faint", ` at ${short(lines.commit)}`)), h("pre.block", lines.text)),
    ),
    investigation.claims?.length > 0 && [
      h("h3", "What the evidence says"),
      h("ul.claims", investigation.claims.map((claim) => h("li", brief(claim.statement), cite(claim.cites), claim.author === "model" && h("span.faint", " (model)")))),
      investigation.claims_dropped > 0 && h("p.faint", `${plural(investigation.claims_dropped, "statement")} without evidence left out.`),
    ],
    (others.length > 0 || investigation.hypotheses?.length > 0) &&
      h(
        "details",
        h("summary", `What was ruled out (${others.length + (investigation.hypotheses ?? []).filter((item) => !item.kept).length})`),
        others.map((item) => suspect(item, cite, false)),
        h("ul.claims", (investigation.hypotheses ?? []).filter((item) => !item.kept).map((item) => h("li", item.statement, ": ", h("span.soft", brief(item.reason)), cite(item.cites)))),
      ),
    investigation.reviewers?.length > 0 &&
      h("p.soft", "Who knows it: ", investigation.reviewers.map((reviewer, index) => [index > 0 && ", ", h("span", { title: reviewer.reason }, reviewer.name)])),
  );
}

function suspect(item, cite, main) {
  return h(
    "div.suspect",
    h(
      "div.head",
      h("code", short(item.commit)),
      h("strong", item.title),
      h("span.soft", item.author),
      since(item.committed_at, " ago"),
      h("span.faint", { title: `Score ${item.score.toFixed(2)} of 1` }, bar(item.score), ` ${percent(item.score)}`),
      cite(item.cites),
    ),
    h("ul", item.reasons.slice(0, main ? 8 : 2).map((reason) => h("li", brief(reason)))),
  );
}

function bar(score) {
  const fill = h("i");
  fill.style.width = `${Math.round(score * 100)}%`; // through the object model: the page's policy allows no style attributes
  return h("span.score", fill);
}

function changeSection(model, context) {
  const { change } = model;
  const pull = change.pull_request;
  const body = h("div", h("p.faint", "Loading the lines…"));
  context.loadDiff(change).then(
    (text) => fill(body, diff.render(text)),
    (error) => fill(body, h("p.note.error", `The diff could not be read: ${error.message}`)),
  );
  return h(
    "section.section",
    h("h2", "Change", h("span.faint", change.strategy)),
    h(
      "div.eyebrow",
      h(`span.tag.proof-${change.proof}`, { title: change.proof_reason }, proof(change.proof)),
      pull && h("a", { href: pull.url, rel: "noreferrer", target: "_blank" }, `Pull request #${pull.number}`),
      pull && h("span.faint", pull.draft ? "draft" : pull.state),
      isolation(change),
    ),
    change.failure && h("p.note.error", change.failure),
    h("p.prose", brief(change.title), change.proof_reason && h("span.soft", ` — ${brief(change.proof_reason)}`)),
    change.checks?.length > 0 && h("ul.checks", change.checks.map(check)),
    change.diff_bytes !== 0 && body,
    change.runs?.length > 0 && h("details", h("summary", `What ran in the sandbox (${change.runs.length})`), change.runs.map(run)),
    change.body && h("details", h("summary", "The pull request’s text"), h("pre.block.wrap", change.body)),
  );
}

const proof = (level) => ({ reproduced: "reproduced: failed before, passes after", tests_only: "tests only", not_verified: "not verified" })[level] ?? words(level);

function isolation(change) {
  const held = [...new Set((change.runs ?? []).map((item) => item.isolation))];
  return held.length > 0 && h("span.faint", `ran under ${held.join(", ")}`);
}

function check(item) {
  const result = item.status === "completed" ? item.conclusion : "pending";
  const mark = { success: "✓", failure: "✕", timed_out: "✕", pending: "○" }[result] ?? "–";
  return h("li", h(`span.check-mark.${result}`, { "aria-label": words(result), role: "img" }, mark), h("span", item.name), h("span.soft", item.summary));
}

function run(item) {
  const result = item.outcome === "exited" ? `exit ${item.exit_code}` : words(item.outcome);
  return h(
    "details",
    h("summary", h("code", item.step), ` ${result}, ${duration(item.wall_seconds)}`),
    h("p.mono.faint", item.command),
    h("pre.block.wrap", item.output_tail || "(printed nothing)"),
  );
}

export function outcome(verdict) {
  const mark = { held: "✓", not_held: "◐", worse: "▲", inconclusive: "?" }[verdict];
  return h(`span.outcome.${verdict}`, h("span", { "aria-hidden": "true" }, mark), words(verdict));
}

function measured({ measurement, measurementStarted, change }) {
  if (!measurement) {
    return h(
      "section.section",
      h("h2", "Measurement"),
      h("p", `Release ${short(measurementStarted.release)} is live `, since(measurementStarted.deployed_at, " ago"), ". The verdict is due ", since(measurementStarted.ends_at), "."),
    );
  }
  const { before, after } = measurement;
  return h(
    "section.section",
    h("h2", "Measurement", h("span.faint", `release ${short(measurement.release)}`)),
    h("p", outcome(measurement.verdict), " ", brief(measurement.reason)),
    before?.rate != null && after?.rate != null && chart.verdict(measurement),
    before && after && h(
      "dl.facts",
      fact("Before", `${count(before.events)} of ${count(before.exposure)}`, percent(before.rate)),
      fact("After", `${count(after.events)} of ${count(after.exposure)}`, percent(after.rate)),
      fact("After ÷ before", measurement.ratio == null ? "–" : measurement.ratio.toFixed(2),
        measurement.ratio_low != null && `${(measurement.metric.confidence * 100).toFixed(0)}% interval ${measurement.ratio_low.toFixed(2)} to ${measurement.ratio_high?.toFixed(2) ?? "∞"}`),
      fact("Needed", `at most ${(1 - measurement.metric.minimum_effect).toFixed(2)}`, "fixed before the pull request"),
    ),
    h("p.faint", measurement.test || measurement.metric.test),
  );
}

function timeline(entries) {
  return h(
    "section.section",
    h("h2", "Timeline"),
    h(
      "ol.timeline",
      entries.map((entry) =>
        h(
          `li${entry.actor.startsWith("person:") ? ".person" : ""}`,
          since(entry.at),
          h("span.dot", { "aria-hidden": "true" }),
          h("div", h("span.what", h("strong", words(entry.to_state ?? entry.kind)), entry.reason && `: ${brief(entry.reason)}`), " ", h("span.who", entry.actor.replace(/^(person|service):/, ""))),
        ),
      ),
    ),
  );
}
