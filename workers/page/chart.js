// Charts: lines over time and bars beside a limit, drawn as SVG. A table or a sentence says the same.

import { h, svg } from "./dom.js";

const WIDTH = 720;
const HEIGHT = 260;
const MARGIN = { left: 46, right: 14, top: 14, bottom: 26 };

const DAY = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

/** Lines over time. `high` of null: as high as the points are. */
export function lines(title, series, { low, high, limit = null, marks = [] }) {
  const points = series.flatMap((line) => line.points);
  if (!points.length) return h("p", { class: "quiet-text" }, "Nothing was recorded in this time.");
  const times = points.map(([time]) => time.getTime());
  const values = points.map(([, value]) => value);
  const bottom = Math.min(low, ...values);
  const top = high ?? Math.max(limit ?? 0, ...values) * 1.08;
  const first = Math.min(...times);
  const last = Math.max(...times, first + 1);
  const x = (time) => MARGIN.left + ((time - first) / (last - first)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (value) => HEIGHT - MARGIN.bottom - ((value - bottom) / (top - bottom)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const shown = marks.map(({ at, generation }) => [new Date(at).getTime(), generation]).filter(([at]) => at >= first && at <= last);
  return figure(title, series, svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": described(title, series) },
    grid(bottom, top, y, high !== null),
    [first, (first + last) / 2, last].map((time, place) =>
      svg("text", { x: x(time), y: HEIGHT - 6, class: `day at-${place}` }, DAY.format(new Date(time))),
    ),
    limit === null ? null : svg("path", { class: "limit", d: `M${MARGIN.left} ${y(limit)}H${WIDTH - MARGIN.right}` }),
    shown.map(([at, generation]) => [
      svg("path", { class: "switch", d: `M${x(at)} ${MARGIN.top}V${HEIGHT - MARGIN.bottom}` }),
      svg("text", { x: x(at) + 4, y: MARGIN.top + 10, class: "switch" }, `generation ${generation}`),
    ]),
    series.map((line) => svg("path", { class: `line ${line.kind}`, d: path(line.points, x, y) })),
  ));
}

function path(points, x, y) {
  return points.map(([time, value], place) => `${place ? "L" : "M"}${x(time.getTime()).toFixed(1)} ${y(value).toFixed(1)}`).join("");
}

function grid(bottom, top, y, shares) {
  const steps = [0, 1, 2, 3, 4].map((part) => bottom + ((top - bottom) * part) / 4);
  return steps.map((value) => [
    svg("path", { class: "grid-line", d: `M${MARGIN.left} ${y(value)}H${WIDTH - MARGIN.right}` }),
    svg("text", { x: MARGIN.left - 8, y: y(value) + 4, class: "tick" }, shares ? `${Math.round(value * 100)}%` : value.toFixed(1)),
  ]);
}

function described(title, series) {
  const said = series.filter(({ points }) => points.length).map(({ name, points }) => {
    const [, first] = points[0];
    const [, last] = points.at(-1);
    return `${name}: first ${first.toFixed(2)}, last ${last.toFixed(2)}`;
  });
  return `${title}. ${said.join("; ")}`;
}

function figure(title, series, drawing) {
  const legend = series.map((line) => h("li", { class: line.kind }, line.name));
  return h("figure", {}, drawing, h("figcaption", {}, title, h("ul", { class: "legend" }, legend)));
}

/** Bars beside the limit, which is 1. */
export function bars(title, values) {
  return h(
    "figure",
    { class: "bars" },
    h(
      "ul",
      { "aria-label": title },
      values.map(({ name, value, alarm }) =>
        h(
          "li",
          { class: alarm ? "alarm" : "" },
          h("span", { class: "bar-name" }, name),
          h("meter", { min: "0", max: "2", ".value": value ?? 0, "aria-label": name }),
          h("span", { class: "bar-value" }, value === null ? "not measured" : `${value.toFixed(2)}${alarm ? " alarm" : ""}`),
        ),
      ),
    ),
    h("figcaption", {}, title, ". The limit is 1."),
  );
}
