// A unified diff as rows with line numbers. Never interprets what is in it: every line becomes text.

import { h } from "./dom.js";

const LINES_MAX = 3000;

/** Splits a unified diff into files: [{name, added, removed, lines: [{kind, old, new, text}]}]. */
export function parse(diff) {
  const files = [];
  let file = null;
  let before = 0;
  let after = 0;
  for (const line of diff.split("\n")) {
    if (line.startsWith("diff --git ")) {
      file = { name: line.replace(/^diff --git a\/(.*) b\/.*$/, "$1"), added: 0, removed: 0, lines: [] };
      files.push(file);
    } else if (!file) {
      continue;
    } else if (line.startsWith("+++ ") && file.lines.length === 0) {
      if (line !== "+++ /dev/null") file.name = line.slice(4).replace(/^b\//, "");
    } else if (line.startsWith("@@")) {
      const found = /^@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@(.*)$/.exec(line);
      if (!found) continue;
      before = Number(found[1]);
      after = Number(found[2]);
      file.lines.push({ kind: "hunk", text: found[3].trim() });
    } else if (file.lines.length && line.startsWith("+")) {
      file.added += 1;
      file.lines.push({ kind: "add", new: after++, text: line.slice(1) });
    } else if (file.lines.length && line.startsWith("-")) {
      file.removed += 1;
      file.lines.push({ kind: "del", old: before++, text: line.slice(1) });
    } else if (file.lines.length && line.startsWith(" ")) {
      file.lines.push({ kind: "ctx", old: before++, new: after++, text: line.slice(1) });
    } else if (line.startsWith("\\")) {
      file.lines.push({ kind: "note", text: line.slice(2) });
    }
  }
  return files;
}

export function render(diff) {
  const files = parse(diff ?? "");
  if (!files.length) return h("p.faint", "No lines changed.");
  let left = LINES_MAX;
  return files.map((file) => {
    const shown = file.lines.slice(0, Math.max(0, left));
    left -= shown.length;
    return h(
      "section.diff",
      h("header", h("code", file.name), h("span.num.add", `+${file.added}`), h("span.num.del", `−${file.removed}`)),
      h(
        "div.diff-scroll",
        { tabindex: "0", role: "region", "aria-label": `Changes of ${file.name}` },
        h("table", h("tbody", shown.map(row))),
      ),
      shown.length < file.lines.length && h("p.faint", `${file.lines.length - shown.length} more lines are in the pull request.`),
    );
  });
}

function row(line) {
  if (line.kind === "hunk") return h("tr.hunk", h("td", { colspan: "3" }, line.text || "⋯"));
  const mark = { add: "+", del: "−", ctx: " ", note: "" }[line.kind];
  return h(
    `tr.${line.kind}`,
    h("td.no", line.old ?? ""),
    h("td.no", line.new ?? ""),
    h("td.text", h("span.mark", { "aria-hidden": "true" }, mark), line.text),
  );
}
