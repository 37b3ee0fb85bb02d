// The pages beside the inbox: changes, verdicts, usage.

import { h } from "./dom.js";
import { get, query } from "./api.js";
import { outcome } from "./report.js";
import { since, money, count, percent, duration, words, short } from "./format.js";

export async function changes(project) {
  const page = await get(`/v1/changes${query({ project, limit: 100 })}`);
  return table("Changes", "Pull requests that Loopwright made, newest first.", page.items, "No change was made yet: the first actionable report starts one, as the policy allows.", [
    ["", (item) => h("span.tag", words(item.state))],
    ["Change", (item) => h("a", { href: `/reports/${item.report_id}` }, item.title)],
    ["Proof", (item) => words(item.proof ?? "")],
    ["Pull request", (item) => item.pull_request && h("a", { href: item.pull_request.url, target: "_blank", rel: "noreferrer" }, `#${item.pull_request.number}`)],
    ["Repository", (item) => item.repository],
    ["Asked", (item) => since(item.created_at, " ago")],
  ]);
}

export async function verdicts(project) {
  const page = await get(`/v1/verdicts${query({ project, limit: 100 })}`);
  return table("Verdicts", "What was measured once a change was live.", page.items, "Nothing was measured yet: a verdict comes after a merged change is deployed.", [
    ["", (item) => outcome(item.measurement.verdict)],
    ["Report", (item) => h("a", { href: `/reports/${item.measurement.report_id}` }, item.report_title)],
    ["Before", (item) => percent(item.measurement.before?.rate), "num"],
    ["After", (item) => percent(item.measurement.after?.rate), "num"],
    ["Release", (item) => h("code", short(item.measurement.release))],
    ["Measured", (item) => since(item.measurement.at, " ago")],
  ]);
}

export async function usage(project) {
  const used = await get(`/v1/usage${query({ project })}`);
  const page = table(`Usage in ${used.month}`, "Metered per pull request; the cost of each stage beside it.", used.stages, "Nothing was used this month.", [
    ["Stage", (item) => words(item.stage)],
    ["Runs", (item) => count(item.runs), "num"],
    ["Pull requests", (item) => (item.pull_requests ? count(item.pull_requests) : ""), "num"],
    ["Work", (item) => (item.cost.wall_seconds ? duration(item.cost.wall_seconds) : ""), "num"],
    ["Model calls", (item) => count(item.cost.model_calls), "num"],
    ["Tokens", (item) => count(item.cost.input_tokens + item.cost.output_tokens), "num"],
    ["Cost", (item) => money(item.cost.usd), "num"],
  ]);
  page.insertBefore(
    h("dl.facts", h("div.fact", h("dt", "Pull requests"), h("dd", count(used.pull_requests))), h("div.fact", h("dt", "Cost"), h("dd", money(used.usd)))),
    page.children[2] ?? null,
  );
  return page;
}

function table(title, lead, items, nothing, columns) {
  return h(
    "section.page",
    h("h1", title),
    h("p.soft", lead),
    items.length
      ? h(
          "div.table-scroll",
          h(
            "table.plain",
            h("thead", h("tr", columns.map(([name, , kind]) => h(`th${kind ? `.${kind}` : ""}`, name)))),
            h("tbody", items.map((item) => h("tr", columns.map(([, cell, kind]) => h(`td${kind ? `.${kind}` : ""}`, cell(item)))))),
          ),
        )
      : h("p.note", nothing),
  );
}
