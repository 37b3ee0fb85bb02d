// The inbox: one screen, three depths, every state with a URL.

import { h, fill } from "./dom.js";
import * as api from "./api.js";
import { List } from "./list.js";
import * as report from "./report.js";
import * as pages from "./pages.js";
import { inputForm } from "./actions.js";
import { Panel } from "./grouping.js";
import { brief, tick, count, plural, since, words } from "./format.js";

const PAGES = { changes: pages.changes, verdicts: pages.verdicts, usage: pages.usage };
const PRIORITIES = ["P0", "P1", "P2", "P3", "P4"];
const STATES = ["gathering", "ready", "investigating", "needs_input", "actionable", "not_actionable", "changing", "in_review", "merged", "measuring", "held", "not_held", "worse", "inconclusive", "snoozed", "dismissed", "suppressed", "merged_into"];
const PAGE = 100;
const BARS_MAX = 80; // more are thinner than a person can tell apart
const BUCKETS = [1, 2, 5, 10, 15, 30, 60, 180, 720].map((minutes) => minutes * 60000);
const KEYS = [
  ["j k", "next, previous"], ["enter", "open"], ["/", "search"], ["f", "only what waits for you"], ["m", "merge"], ["i", "answer"], ["s", "snooze"], ["d", "dismiss"], ["e", "mark done"], ["a", "all that can be done"],
  ["esc", "cancel, back"], ["g l", "inbox"], ["g c", "changes"], ["g v", "verdicts"], ["g u", "usage"], ["t", "light or dark"], ["?", "these keys"],
];

const app = document.getElementById("app");
const view = { filters: {}, rows: [], cursor: null, total: 0, loading: false, news: new Set(), open: null, evidence: null, detail: null, asks: null, allowed: new Set() };
let list;
let parts;

// Starting

async function start() {
  theme(localStorage.getItem("theme"));
  const token = api.tokenFromAddress();
  try {
    if (token) await api.signIn(token);
    view.me = await api.get("/v1/me");
    view.projects = await api.get("/v1/projects");
  } catch (error) {
    return error.status === 401 ? signInPage(token ? "That token is not in force." : "") : fatal(error);
  }
  frame();
  listenToChanges();
  route();
  setInterval(() => tick(), 10000);
}

function signInPage(message) {
  const field = h("input.search", { type: "password", autocomplete: "current-password", "aria-label": "Token", required: true });
  const said = h("p", { role: "alert" }, message);
  const form = h(
    "form",
    h("div.brand", h("img", { src: "/icon.svg", alt: "" }), "Loopwright"),
    h("p.soft", "Sign in with a token. The operator's is printed by “loopwright up”, and kept in the data folder under secrets/operator_token."),
    field,
    h("button.button.primary", { type: "submit" }, "Sign in"),
    said,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await api.signIn(field.value.trim());
      await start();
    } catch (error) {
      fill(said, error.message);
    }
  });
  fill(app, h("main.login", form));
  field.focus();
}

function fatal(error) {
  fill(app, h("main.empty", h("h2", "The inbox could not be loaded"), h("p", error.message), h("button.button", { onclick: start }, "Try again")));
}

function frame() {
  list = new List({ onopen: (id) => go(`/reports/${id}${filterQuery()}`), onmore: () => loadMore() });
  const nav = (href, name) => h("a", { href, "data-nav": href }, name);
  parts = {
    nav: h("nav", { "aria-label": "Pages" }, nav("/", "Inbox"), nav("/changes", "Changes"), nav("/verdicts", "Verdicts"), nav("/usage", "Usage")),
    live: h("span.live", { role: "status" }, h("span", "live")),
    project: h("select", { "aria-label": "Project", onchange: (event) => setFilter({ project: event.target.value || undefined }) },
      h("option", { value: "" }, "All projects"), view.projects.map(({ config }) => h("option", { value: config.name }, config.title || config.name))),
    search: h("input.search", { type: "search", placeholder: "Search", "aria-label": "Search reports", oninput: debounce((event) => setFilter({ q: event.target.value || undefined }), 250) }),
    facets: h("div.facets", { role: "group", "aria-label": "Filters" }),
    news: h("div"),
    foot: h("div.list-foot", { role: "status" }),
    body: h("div.list-body", list.element),
    detail: h("main.detail", { id: "detail", tabindex: "-1" }),
    page: h("main.page-scroll"),
    keys: null,
  };
  parts.inbox = h("div.inbox", h("div.list", h("div.list-head", parts.search, parts.facets), parts.news, parts.body, parts.foot), parts.detail);
  parts.main = h("div.main");
  fill(
    app,
    h("header.topbar", h("a.brand", { href: "/" }, h("img", { src: "/icon.svg", alt: "" }), h("span", "Loopwright")), parts.nav, h("span.spacer"), parts.live, parts.project,
      h("button.icon-button", { type: "button", title: "Light or dark (t)", "aria-label": "Light or dark", onclick: toggleTheme }, "◐"),
      h("button.icon-button.help-button", { type: "button", title: "Keys (?)", "aria-label": "Keys", onclick: toggleKeys }, "?")),
    parts.main,
  );
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", onLink);
  addEventListener("popstate", route);
}

// Addresses

function onLink(event) {
  const link = event.target.closest("a[href^='/']");
  if (!link || link.target || event.defaultPrevented || event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault();
  const href = link.getAttribute("href");
  go(href === "/" || (href.startsWith("/reports/") && !href.includes("?")) ? href + filterQuery() : href);
}

function go(address, { replace = false } = {}) {
  if (address === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", address);
  route();
}

function filterQuery() {
  return api.query(view.filters);
}

function readFilters() {
  const given = new URLSearchParams(location.search);
  return {
    project: given.get("project") ?? undefined,
    q: given.get("q") ?? undefined,
    waits_for_me: given.get("waits_for_me") ?? undefined,
    closed: given.get("closed") ?? undefined,
    priority: given.getAll("priority"),
    state: given.getAll("state"),
  };
}

function setFilter(change) {
  const filters = { ...view.filters, ...change };
  go(location.pathname.startsWith("/reports/") ? `/${api.query(filters)}` : location.pathname + api.query(filters), { replace: true });
}

async function route() {
  const [, first, id, third, fourth] = location.pathname.split("/");
  const filters = readFilters();
  const changed = JSON.stringify(filters) !== JSON.stringify(view.filters) || !view.loaded;
  view.filters = filters;
  parts.project.value = filters.project ?? "";
  if (document.activeElement !== parts.search) parts.search.value = filters.q ?? "";
  drawFacets();
  for (const link of parts.nav.children) {
    const here = link.dataset.nav === (PAGES[first] ? `/${first}` : "/");
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  if (PAGES[first]) return showPage(first);
  if (parts.main.firstElementChild !== parts.inbox) fill(parts.main, parts.inbox);
  view.open = first === "reports" ? id : null;
  view.evidence = third === "evidence" ? fourth : null;
  parts.inbox.toggleAttribute("data-open", Boolean(view.open));
  if (changed) await loadList();
  list.select(view.open);
  view.open ? await showReport(view.open) : showNothing();
}

async function showPage(name) {
  document.title = `${name[0].toUpperCase()}${name.slice(1)} · Loopwright`;
  fill(parts.main, parts.page);
  parts.page.classList.add("dimmed");
  try {
    fill(parts.page, await PAGES[name](view.filters.project));
  } catch (error) {
    fill(parts.page, failure(`The ${name} could not be read`, error, () => showPage(name)));
  }
  parts.page.classList.remove("dimmed");
}

// The list

function listPath(cursor) {
  return `/v1/reports${api.query({ ...view.filters, cursor, limit: PAGE })}`;
}

async function loadList() {
  view.loaded = true;
  view.news.clear();
  drawNews();
  list.element.classList.add("dimmed");
  try {
    const page = await api.get(listPath());
    Object.assign(view, { rows: page.items, cursor: page.next_cursor, total: page.total });
    fill(parts.body, page.items.length ? list.element : emptyList());
    list.set(view.rows);
  } catch (error) {
    fill(parts.body, failure("The reports could not be read", error, loadList));
  }
  list.element.classList.remove("dimmed");
  drawFoot();
}

async function loadMore() {
  if (!view.cursor || view.loading) return;
  view.loading = true;
  try {
    const page = await api.get(listPath(view.cursor));
    const known = new Set(view.rows.map((row) => row.id));
    view.rows.push(...page.items.filter((row) => !known.has(row.id)));
    view.cursor = page.next_cursor;
    list.rows = view.rows;
    list.draw();
    drawFoot();
  } catch (error) {
    toast(`More could not be read: ${error.message}`);
    view.cursor = null;
  }
  view.loading = false;
}

function drawFoot() {
  const waiting = view.rows.filter((row) => row.waits_for_person).length;
  const many = view.total >= 10000 ? "10,000 or more" : count(view.total);
  fill(parts.foot, h("span", `${many} ${view.total === 1 ? "report" : "reports"}`), waiting > 0 && h("span", `${count(waiting)} ${waiting === 1 ? "waits" : "wait"} for you`));
}

function drawFacets() {
  const { filters } = view;
  const toggle = (name, pressed, change) => h("button.facet", { type: "button", "aria-pressed": String(Boolean(pressed)), onclick: () => setFilter(change) }, name);
  fill(
    parts.facets,
    toggle("Waits for you", filters.waits_for_me, { waits_for_me: filters.waits_for_me ? undefined : "true" }),
    PRIORITIES.map((name) => {
      const on = filters.priority?.includes(name);
      return toggle(name, on, { priority: on ? filters.priority.filter((item) => item !== name) : [...(filters.priority ?? []), name] });
    }),
    h("select.facet", { "aria-label": "State", "aria-pressed": String(Boolean(filters.state?.length)), onchange: (event) => setFilter({ state: event.target.value ? [event.target.value] : [] }) },
      h("option", { value: "" }, "Any state"), STATES.map((name) => h("option", { value: name, selected: filters.state?.includes(name) }, words(name)))),
    toggle("Closed", filters.closed, { closed: filters.closed ? undefined : "true" }),
  );
}

function emptyList() {
  const filtered = Object.values(view.filters).some((value) => value?.length);
  if (filtered) {
    return h("div.empty", h("h2", "Nothing matches"), h("p", "No report fits these filters."), h("button.button", { type: "button", onclick: () => go("/") }, "Show all"));
  }
  const command = "loopwright signals send --kind ticket --title \"Checkout fails in yen\" --key $KEY";
  const copy = h("button.button", { type: "button", onclick: async () => { await navigator.clipboard.writeText(command); fill(copy, "Copied"); } }, "Copy");
  return h(
    "div.empty",
    h("h2", "Nothing has come in yet"),
    h("p", "Reports appear here as signals arrive: errors, failing health checks, tickets. What points at one problem becomes one report."),
    h("p", "Declare a project with “loopwright apply -f project.yaml”, make a key with “loopwright keys create”, and send the first signal:"),
    h("pre.block.wrap", command),
    copy,
  );
}

function failure(what, error, retry) {
  return h("div.empty", { role: "alert" }, h("h2", what), h("p", error.message), h("p.faint", "Failed ", since(new Date().toISOString(), " ago"), ". What is known stays where it was."), h("button.button", { type: "button", onclick: retry }, "Try again"));
}

// One report

function showNothing() {
  document.title = "Loopwright";
  view.detail = null;
  view.panel = null;
  view.asks = null;
  fill(parts.detail, h("div.empty", h("h2", view.rows.length ? "Choose a report" : ""), view.rows.length > 0 && h("p", "j and k move, enter opens, ? shows all keys.")));
}

async function showReport(id, { quiet = false } = {}) {
  const turn = (view.turn = {});
  if (!quiet && view.detail?.id !== id) parts.detail.classList.add("dimmed");
  try {
    const [detail, timeline, rates] = await Promise.all([
      api.get(`/v1/reports/${id}`),
      api.get(`/v1/reports/${id}/timeline`),
      api.get(`/v1/reports/${id}/rates`).catch(() => null),
    ]);
    if (view.turn !== turn || view.open !== id) return;
    draw(detail, timeline, rates, quiet);
  } catch (error) {
    if (view.turn === turn) fill(parts.detail, failure("The report could not be read", error, () => showReport(id)));
  }
  parts.detail.classList.remove("dimmed");
}

function draw(detail, timeline, rates, quiet) {
  const same = view.detail?.id === detail.id;
  const kept = same ? remember() : null;
  view.detail = detail;
  document.title = `${detail.title} · Loopwright`;
  const given = context(detail);
  if (same && view.panel) view.panel.update(detail, given);
  else view.panel = new Panel(detail, given);
  fill(parts.detail, report.render(detail, timeline, summarise(rates), { ...given, panel: view.panel }));
  if (kept) restore(kept);
  else if (!quiet) parts.detail.scrollTop = 0;
  if (view.evidence) parts.detail.querySelector(`[data-cite="${CSS.escape(view.evidence)}"]:not([aria-expanded="true"])`)?.click();
}

/** What is drawn anew with the report; the grouping's panel stays as it is. */
const own = (selector) => [...parts.detail.querySelectorAll(selector)].filter((element) => !view.panel?.element.contains(element));

/** What a person has open or half typed, so that a live change takes nothing away. */
function remember() {
  return {
    top: parts.detail.scrollTop,
    details: own("details").map((element) => element.open),
    cites: [...parts.detail.querySelectorAll(".cite[aria-expanded='true']")].map((element) => element.dataset.cite),
    form: view.asks?.place?.firstElementChild ?? null,
    texts: own("textarea").filter((field) => !view.asks?.place?.contains(field)).map((field) => field.value),
    focused: view.asks?.place?.contains(document.activeElement) || view.panel?.element.contains(document.activeElement) ? document.activeElement : null,
    answering: document.activeElement?.closest("#answer") ? [document.activeElement.selectionStart, document.activeElement.selectionEnd] : null,
  };
}

function restore(kept) {
  own("details").forEach((element, index) => { if (kept.details[index]) element.open = true; });
  for (const id of new Set(kept.cites)) parts.detail.querySelector(`[data-cite="${CSS.escape(id)}"]:not([aria-expanded="true"])`)?.click();
  if (kept.form) view.asks?.place.append(kept.form);
  const fields = own("textarea").filter((field) => !view.asks?.place?.contains(field));
  fields.forEach((field, index) => { field.value = kept.texts[index] ?? ""; });
  kept.focused?.focus({ preventScroll: true });
  const answer = kept.answering && parts.detail.querySelector("#answer textarea");
  if (answer) {
    answer.focus({ preventScroll: true });
    answer.setSelectionRange(...kept.answering);
  }
  parts.detail.scrollTop = kept.top;
}

function summarise(rates) {
  if (!rates) return null;
  const minutes = rates.signals.map((item) => ({ at: Date.parse(item.minute), count: item.count })).sort((one, other) => one.at - other.at);
  const requests = rates.exposure.filter((item) => item.unit === "requests");
  const first = minutes[0]?.at ?? Infinity;
  const exposed = requests.filter((item) => Date.parse(item.minute) >= first - 60000).reduce((sum, item) => sum + item.count, 0);
  const signals = minutes.reduce((sum, item) => sum + item.count, 0);
  const end = Math.min(Date.parse(rates.end), Date.now());
  // From a little before the onset, or the deploy that came shortly before it: a day of nothing tells nothing.
  const span = Math.max(end - first, 10 * 60000);
  const near = rates.deploys.map((deploy) => Date.parse(deploy.deployed_at)).filter((at) => at >= first - span / 2);
  const start = Math.max(Date.parse(rates.start), Math.min(first, ...near) - span / 8);
  const deploys = rates.deploys.map((deploy) => ({ at: Date.parse(deploy.deployed_at), label: brief(deploy.release).slice(0, 16) })).filter((deploy) => deploy.at >= start);
  const bucket = BUCKETS.find((size) => (end - start) / size <= BARS_MAX) ?? BUCKETS.at(-1);
  const points = new Map();
  for (const item of minutes) {
    const at = Math.floor(item.at / bucket) * bucket;
    points.set(at, (points.get(at) ?? 0) + item.count);
  }
  return { points: [...points].map(([at, number]) => ({ at, count: number })), deploys, start, end, bucket, share: exposed ? signals / exposed : null };
}

function context(detail) {
  return {
    backHref: `/${filterQuery()}`,
    role: view.me.role,
    showSignals: () => view.panel.open(),
    loadDiff: (change) => api.text(`/v1/changes/${change.id}/diff`),
    inputForm: () => inputForm({ act: (name, body) => act(detail, name, body) }),
    act: (name, body, said) => act(detail, name, body, said),
    say: (id, route, body) => api.post(`/v1/reports/${id}/actions/${route}`, body, view.detail?.id === id ? view.detail.version : detail.version),
    lookAgain: async () => view.open === detail.id && showReport(detail.id, { quiet: true }),
    asked: () => view.panel?.refreshNow(),
    change: (name, body) => changeAction(detail, name, body),
    register: (asks, allowed, place) => { view.asks = { ...asks, place }; view.allowed = allowed; },
    opened: (id) => history.replaceState(null, "", `/reports/${detail.id}${id ? `/evidence/${id}` : ""}${filterQuery()}`),
  };
}

async function act({ id }, name, body, said) {
  const detail = view.detail?.id === id ? view.detail : null; // a form may outlive a redraw: what counts is what is shown now
  if (!detail) return;
  try {
    await api.post(`/v1/reports/${detail.id}/actions/${name}`, body, detail.version);
    view.asks?.place.replaceChildren();
    for (const field of parts.detail.querySelectorAll("textarea")) field.value = "";
    if (said) toast(said);
    await Promise.all([showReport(detail.id, { quiet: true }), refreshRow(detail.id)]);
  } catch (error) {
    refused(error, detail);
  }
}

async function changeAction(detail, name, body) {
  try {
    await api.post(`/v1/changes/${detail.change.id}/actions/${name}`, body);
    view.asks.place.replaceChildren();
    toast({ merge: "Asked for the merge.", decline: "Declined.", request_changes: "Asked for changes." }[name] ?? "Done.");
    await showReport(detail.id, { quiet: true });
  } catch (error) {
    refused(error, detail);
  }
}

function refused(error, detail) {
  toast(error.status === 409 ? `Not done: ${error.message.replace(/\.?$/, ".")}` : error.message);
  if (error.status === 409) showReport(detail.id, { quiet: true });
}

// Live

const ALIVE_EVERY = 30000;

function listenToChanges() {
  const refresh = new Set();
  const flush = debounce(async () => {
    const ids = [...refresh];
    refresh.clear();
    await Promise.all(ids.slice(0, 20).map(refreshRow));
    if (view.open && ids.includes(view.open)) await showReport(view.open, { quiet: true });
  }, 300);
  const onstate = (live) => {
    parts.live.classList.toggle("stale", !live);
    if (live === view.live) return;
    view.live = live;
    fill(parts.live, h("span", live ? "live" : ["not live since ", clock(), ": what you see may be old"]));
  };
  api.listen({
    onstate,
    onevent: (kind, body) => {
      if (kind === "reset") return void Promise.all([loadList(), view.open && showReport(view.open, { quiet: true })]);
      if (kind === "command.refused") toast(body.reason);
      const id = kind === "report.changed" ? body.id : body.report_id;
      if (!id) return;
      refresh.add(id);
      flush();
    },
  });
  // A connection that died silently looks open: ask now and then. It also finds a session that has ended.
  setInterval(async () => {
    if (document.hidden) return;
    try {
      await api.get("/v1/me");
    } catch (error) {
      if (error.status === 401) location.reload();
      else onstate(false);
    }
  }, ALIVE_EVERY);
}

async function refreshRow(id) {
  let detail;
  try {
    detail = await api.get(`/v1/reports/${id}`);
  } catch {
    return;
  }
  if (list.patch(detail)) return;
  if (!fits(detail, view.filters)) return;
  if (!view.rows.length && !Object.values(view.filters).some((value) => value?.length)) return void loadList();
  view.news.add(id);
  drawNews();
}

const CLOSED = new Set(["dismissed", "suppressed", "merged_into"]);

/** Whether the list would show it. What words match only the gateway knows, so a search stays as it was read. */
function fits(row, { project, priority, state, waits_for_me, closed, q }) {
  if (q || (project && project !== row.project) || (priority?.length && !priority.includes(row.priority))) return false;
  if (state?.length ? !state.includes(row.state) : !closed && CLOSED.has(row.state)) return false;
  return !waits_for_me || row.waits_for_person;
}

function drawNews() {
  const number = view.news.size;
  fill(parts.news, number > 0 && h("button.news", { type: "button", onclick: loadList }, view.cursor ? `${plural(number, "report")} changed further down: show` : `${plural(number, "new report")}: show`));
}

// Keys

let leader = 0;

function onKey(event) {
  const typing = event.target.closest("input, textarea, select");
  if (event.key === "Escape") return escape(typing);
  if (typing || event.metaKey || event.ctrlKey || event.altKey) return;
  const choice = parts.detail.querySelector(`.input-form [data-key="${CSS.escape(event.key)}"]`);
  if (choice) return void (event.preventDefault(), choice.click());
  if (Date.now() - leader < 1200) {
    leader = 0;
    const target = { l: "/", c: "/changes", v: "/verdicts", u: "/usage" }[event.key];
    if (target) return void (event.preventDefault(), go(target));
  }
  const ask = (name) => view.open && view.allowed.has(name) && view.asks?.[name]?.();
  const actions = {
    j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1),
    "/": () => parts.search.focus(), f: () => setFilter({ waits_for_me: view.filters.waits_for_me ? undefined : "true" }),
    m: () => ask("merge"), d: () => ask("dismiss"), s: () => ask("snooze"), i: () => ask("provide_input"),
    e: () => view.allowed.has("dismiss") && view.asks?.done?.(), a: () => view.asks?.menu?.(),
    g: () => { leader = Date.now(); }, t: toggleTheme, "?": toggleKeys,
  };
  if (event.key === "Enter" && event.target === list.element && list.selected) return void go(`/reports/${list.selected}${filterQuery()}`);
  if (!actions[event.key] || (event.key.startsWith("Arrow") && event.target !== list.element)) return;
  event.preventDefault();
  actions[event.key]();
}

function move(step) {
  const id = list.neighbour(step);
  if (!id) return;
  if (matchMedia("(max-width: 820px)").matches) return list.select(id);
  go(`/reports/${id}${filterQuery()}`, { replace: Boolean(view.open) });
}

function escape(typing) {
  if (parts.keys) return toggleKeys();
  if (view.asks?.place?.firstElementChild) return view.asks.place.replaceChildren();
  if (view.open && view.panel?.cancel()) return;
  if (typing) return typing.blur();
  if (view.open) go(`/${filterQuery()}`);
}

function toggleKeys() {
  if (parts.keys) {
    parts.keys.remove();
    parts.keys = null;
    return;
  }
  parts.keys = h("div.keys", { role: "note" }, h("h2", "Keys"), KEYS.map(([key, what]) => [h("span", key.split(" ").map((part) => [h("kbd", part), " "])), h("span", what)]));
  document.body.append(parts.keys);
}

// Small things

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}

function toggleTheme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = dark ? "light" : "dark";
  localStorage.setItem("theme", name);
  theme(name);
}

const clock = () => new Date().toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hour12: false });

let toasting;

function toast(text) {
  document.querySelector(".toast")?.remove();
  clearTimeout(toasting);
  const element = h("div.toast", { role: "status" }, text);
  document.body.append(element);
  toasting = setTimeout(() => element.remove(), 6000);
}

function debounce(work, milliseconds) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), milliseconds);
  };
}

start();
