// Numbers with units, times relative with the exact one on hover.

import { h } from "./dom.js";

const COUNT = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const EXACT = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "long" });
const STEPS = [
  [60, 1, "s"],
  [3600, 60, "min"],
  [86400, 3600, "h"],
  [86400 * 60, 86400, "d"],
  [Infinity, 86400 * 365.25, "y"],
];

export function duration(seconds) {
  if (seconds == null) return "";
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  const value = Math.abs(seconds);
  const [, per, unit] = STEPS.find(([limit]) => value < limit);
  const amount = value / per;
  return `${amount < 9.95 && amount % 1 > 0.05 ? amount.toFixed(1) : Math.floor(amount)} ${unit}`;
}

export function ago(iso, now = Date.now()) {
  const seconds = (now - Date.parse(iso)) / 1000;
  if (Number.isNaN(seconds)) return "";
  if (Math.abs(seconds) < 5) return "now";
  const [, per, unit] = STEPS.find(([limit]) => Math.abs(seconds) < limit);
  const amount = `${Math.floor(Math.abs(seconds) / per)} ${unit}`;
  return seconds < 0 ? `in ${amount}` : amount;
}

/** A time element that says how long ago, and exactly when on hover. It is kept current by tick(). */
export function since(iso, suffix = "") {
  if (!iso) return h("span.faint", "–");
  return h("time", { datetime: iso, title: EXACT.format(new Date(iso)), "data-suffix": suffix }, told(iso, suffix));
}

function told(iso, suffix) {
  const text = ago(iso);
  return text === "now" || text.startsWith("in ") ? text : text + suffix;
}

export function tick(root = document) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const text = told(element.getAttribute("datetime"), element.dataset.suffix ?? "");
    if (element.textContent !== text) element.textContent = text;
  }
}

export const count = (value) => (value == null ? "–" : COUNT.format(value));
export const compact = (value) => (value == null ? "–" : COMPACT.format(value));
export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;
export const percent = (value) =>
  value == null ? "–" : `${value !== 0 && Math.abs(value) < 0.001 ? "<0.1" : (value * 100).toFixed(Math.abs(value) < 0.1 ? 2 : 1).replace(/\.0+$/, "")}%`;
export const money = (usd) => (usd ? `$${usd < 0.01 ? usd.toFixed(4) : usd.toFixed(2)}` : "$0");
export const short = (sha) => (sha ? sha.slice(0, 8) : "–");
/** Text with full commit ids cut to eight digits, as people say them. */
export const brief = (text) => (text ?? "").replace(/\b([0-9a-f]{8})[0-9a-f]{32}\b/g, "$1");
export const words = (name) => (name ?? "").replaceAll("_", " ");
export const bytes = (value) => (value < 1024 ? `${value} B` : `${(value / 1024).toFixed(1)} KiB`);
