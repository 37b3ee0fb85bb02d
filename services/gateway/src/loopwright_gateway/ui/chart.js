// Charts as SVG, each with its numbers as text for those who cannot see it.

import { s } from "./dom.js";
import { percent, count, duration } from "./format.js";

/** A day at a glance: bars per bucket, a mark where a deploy happened. `deploys` are fractions 0..1 of the width. */
export function sparkline(buckets, deploys = []) {
  const width = 96;
  const height = 20;
  const most = Math.max(1, ...buckets);
  const step = width / Math.max(1, buckets.length);
  const total = buckets.reduce((sum, value) => sum + value, 0);
  return s(
    "svg.spark",
    { viewBox: `0 0 ${width} ${height}`, height, preserveAspectRatio: "none", role: "img", "aria-label": `${count(total)} signals in 24 hours` },
    s("title", null, `${count(total)} signals in 24 hours${deploys.length ? `, ${deploys.length} deploys` : ""}`),
    s("line.axis", { x1: 0, y1: height - 0.5, x2: width, y2: height - 0.5 }),
    deploys.map((at) => s("line.deploy", { x1: at * width, x2: at * width, y1: 0, y2: height })),
    buckets.map((value, index) => {
      if (!value) return null;
      const size = Math.max(1.5, (value / most) * (height - 3));
      return s("rect.bar", { x: index * step + 0.5, width: Math.max(1, step - 1), y: height - size - 0.5, height: size });
    }),
  );
}

/** Drawn narrower on a narrow screen, so that letters keep their size. */
const broad = () => (matchMedia("(max-width: 820px)").matches ? 360 : 640);

/** Signals per bucket over time with the deploys marked: points [{at, count, exposure}], deploys [{at, label}]. */
export function timeline(points, deploys, { start, end, bucket }) {
  const width = broad();
  const height = 124;
  const pad = { left: 40, right: 8, top: 20, bottom: 20 };
  const inner = width - pad.left - pad.right;
  const tall = height - pad.top - pad.bottom;
  const x = (at) => pad.left + (inner * (at - start)) / Math.max(1, end - start);
  const most = Math.max(1, ...points.map((point) => point.count));
  const bar = Math.max(1.5, (inner * bucket) / Math.max(1, end - start) - 1);
  const total = points.reduce((sum, point) => sum + point.count, 0);
  return s(
    "svg.chart",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${count(total)} signals over time, ${deploys.length} deploys` },
    s("line.axis", { x1: pad.left, x2: width - pad.right, y1: height - pad.bottom, y2: height - pad.bottom }),
    s("text.tick", { x: pad.left - 6, y: pad.top + 4, "text-anchor": "end" }, count(most)),
    s("text.tick", { x: pad.left - 6, y: height - pad.bottom, "text-anchor": "end" }, "0"),
    points.map((point) => {
      const size = (point.count / most) * tall;
      return s(
        "rect.bar",
        { x: Math.max(pad.left, Math.min(x(point.at), width - pad.right - bar)), width: bar, y: height - pad.bottom - size, height: size },
        s("title", null, `${new Date(point.at).toLocaleString("en")}: ${count(point.count)} ${point.count === 1 ? "signal" : "signals"} in ${duration(bucket / 1000)}`),
      );
    }),
    deploys.map((deploy, index) =>
      s(
        "g.deploy",
        null,
        s("line.deploy", { x1: x(deploy.at), x2: x(deploy.at), y1: 4, y2: height - pad.bottom }),
        s("path.deploy-flag", { d: `M${x(deploy.at)} 4l7 3.5l-7 3.5z` }),
        labelled(x(deploy.at), deploys[index + 1] && x(deploys[index + 1].at), width) && s("text.tick", { x: x(deploy.at) + 10, y: 12 }, `deploy ${deploy.label}`),
        s("title", null, `Deploy ${deploy.label} at ${new Date(deploy.at).toLocaleString("en")}`),
      ),
    ),
    s("text.tick", { x: pad.left, y: height - 5 }, clock(start)),
    s("text.tick", { x: pad.left + inner / 2, y: height - 5, "text-anchor": "middle" }, `signals per ${duration(bucket / 1000)}`),
    s("text.tick", { x: width - pad.right, y: height - 5, "text-anchor": "end" }, clock(end)),
  );
}

/** Whether a mark's name has room before the next mark and the edge. */
const labelled = (at, next, width) => Math.min(next ?? width, width) - at > 100;

function clock(at) {
  return new Date(at).toLocaleString("en", { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hour12: false });
}

/** Before and after as rates with their intervals, and the line the change had to get past. */
export function verdict(measurement) {
  const { before, after, metric } = measurement;
  const width = broad();
  const height = 150;
  const left = width < 500 ? 54 : 78;
  const right = width < 500 ? 62 : 92;
  const inner = width - left - right;
  const needed = before.rate * (metric.direction === "decrease" ? 1 - metric.minimum_effect : 1 + metric.minimum_effect);
  const most = Math.max(before.rate_high ?? before.rate, after.rate_high ?? after.rate, needed, 1e-9) * 1.05;
  const x = (rate) => left + (inner * Math.min(rate, most)) / most;
  const row = (label, side, y, kind) =>
    s(
      `g.side.${kind}`,
      null,
      s("text.label", { x: left - 10, y: y + 4, "text-anchor": "end" }, label),
      side.rate_low != null && side.rate_high != null &&
        s("rect.band", { x: x(side.rate_low), width: Math.max(2, x(side.rate_high) - x(side.rate_low)), y: y - 9, height: 18, rx: 3 }),
      s("circle.dot", { cx: x(side.rate), cy: y, r: 5 }),
      s("text.value", { x: width - right + 10, y: y + 4 }, percent(side.rate)),
      s("title", null, `${label}: ${count(side.events)} of ${count(side.exposure)}, ${percent(side.rate)} (${percent(side.rate_low)} to ${percent(side.rate_high)})`),
    );
  return s(
    "svg.chart.verdict-chart",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Rate before ${percent(before.rate)}, after ${percent(after.rate)}, needed ${percent(needed)}` },
    s("line.needed", { x1: x(needed), x2: x(needed), y1: 14, y2: height - 24 }),
    s("text.tick", { x: x(needed), y: 10, "text-anchor": x(needed) < left + 60 ? "start" : "middle" }, `needed ${percent(needed)}`),
    row("before", before, 44, "before"),
    s("line.deploy", { x1: left, x2: width - right, y1: 68, y2: 68 }),
    s("text.tick", { x: width - right + 10, y: 72 }, "deploy"),
    row("after", after, 94, measurement.verdict),
    s("line.axis", { x1: left, x2: width - right, y1: height - 22, y2: height - 22 }),
    s("text.tick", { x: left, y: height - 8 }, "0%"),
    s("text.tick", { x: width - right, y: height - 8, "text-anchor": "end" }, percent(most)),
  );
}
