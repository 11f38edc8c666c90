// Reports: recall by the age of images, and drift, as the jobs recorded them.

import { ask } from "./api.js";
import { count, h, note, percent, plural, table, when } from "./dom.js";
import { bars, lines } from "./chart.js";

const COHORTS = {
  hour: "younger than an hour",
  day: "an hour to a day",
  week: "a day to a week",
  older: "older than a week",
  trained: "trained on",
};

export async function reports(place, { rest, signal }) {
  const kind = rest[0] === "drift" ? "drift" : "recall";
  const tabs = ["recall", "drift"].map((name) =>
    h("a", { href: `#/reports/${name}`, "aria-current": name === kind ? "page" : null }, name === "recall" ? "Recall" : "Drift"),
  );
  place.append(
    h("nav", { class: "tabs", "aria-label": "Reports" }, tabs),
    h("h1", {}, kind === "recall" ? "Is everything still found?" : "Is what arrives still what arrived before?"),
  );
  const report = await ask(`v1/reports/${kind}`, { signal });
  place.append(
    h("p", { class: "quiet-text" }, "Made ", when(report.made_at), " of the last 30 days."),
    ...report.missing.map(({ what, command }) => h("div", { class: "notice" }, h("p", {}, what, " ", h("code", {}, command)))),
    ...(kind === "recall" ? recall(report) : drift(report)),
    ...recorded(report),
  );
}

function recall(report) {
  return [...(report.newest ? probed(report) : []), ...examples(report.known_items ?? [])];
}

/** Some of the queries that a probe asks: a click asks them here, and shows whether the image is found. */
function examples(items) {
  if (!items.length) return [];
  const rows = items.map(({ query, image_id: imageId, cohort }) => [
    h("a", { class: "break", href: `#/search?${new URLSearchParams({ q: query })}` }, query),
    h("a", { class: "break", href: `#/search?${new URLSearchParams({ like: imageId })}` }, imageId),
    COHORTS[cohort] ?? cohort,
  ]);
  return [
    h("h2", {}, "Ask them yourself"),
    h("p", { class: "quiet-text" }, "Captions of stored images, as a probe draws them. The image should be among the first ten answers to its own."),
    table("Examples of queries", ["Query", "Image that should be found", "Its age"], rows),
  ];
}

function probed(report) {
  const { younger_than_a_day: young, trained } = report.headline;
  const rows = Object.entries(report.newest.cohorts).map(([cohort, { queries, ours, exact_dense: exact }]) => [
    COHORTS[cohort] ?? cohort,
    String(queries),
    ...["R@1", "R@10"].flatMap((metric) => [percent(ours[metric]), percent(exact[metric])]),
  ]);
  return [
    h(
      "div",
      { class: "cards" },
      card("New images found among ten", young, "younger than a day"),
      card("Trained images found among ten", trained, "those the model learnt from"),
    ),
    h("h2", {}, "Over time"),
    lines("R@10 of each probe", recallLines(report.probes), { low: 0.5, high: 1, marks: report.switches }),
    h("h2", {}, "The newest probe, by the age of the images"),
    table(
      "Recall of the newest probe",
      ["Images", "Queries", "R@1", "exact search", "R@10", "exact search"],
      rows,
    ),
  ];
}

function card(name, figures, about) {
  if (!figures) return h("div", { class: "card" }, h("p", { class: "name" }, name), h("p", { class: "quiet-text" }, `No query of images ${about} yet.`));
  const [low, high] = figures["ours_R@10_95%"];
  return h(
    "div",
    { class: "card" },
    h("p", { class: "name" }, name),
    h("p", { class: "figure" }, percent(figures.ours["R@10"])),
    h("p", { class: "quiet-text" }, `${percent(low)} to ${percent(high)} at 95%; exact search ${percent(figures.exact_dense["R@10"])}; ${plural(figures.queries, "query", "queries")}`),
  );
}

function recallLines(probes) {
  const of = (cohorts, who) => (probe) => {
    const found = cohorts.map((name) => probe.cohorts[name]).filter(Boolean);
    const queries = found.reduce((sum, one) => sum + one.queries, 0);
    return queries ? found.reduce((sum, one) => sum + one.queries * one[who]["R@10"], 0) / queries : null;
  };
  const points = (value) => probes.map((probe) => [new Date(probe.at), value(probe)]).filter(([, y]) => y !== null);
  return [
    { name: "exact search, new images", kind: "exact", points: points(of(["hour", "day"], "exact_dense")) },
    { name: "trained images", kind: "trained", points: points(of(["trained"], "ours")) },
    { name: "new images", kind: "ours", points: points(of(["hour", "day"], "ours")) },
  ];
}

function drift(report) {
  const before = report.early ? early(report.early) : [];
  return report.newest ? [...before, ...checked(report)] : before;
}

/** Before the first check: how many it waits for, and where they lie beside all others. */
function early({ arrived, wanted, has_reference: hasReference, elsewhere, first_codes: codes }) {
  const what = hasReference ? "that the first check looks at" : "that become its reference";
  const share = elsewhere === null ? "" : ` ${percent(elsewhere)} of them would have to lie under other first codes to be spread as the images before; there is no limit for it yet.`;
  const rows = codes.toSorted((one, other) => other.arrivals - one.arrivals).slice(0, 12).map(({ code, arrivals, images }) => [
    h("a", { href: `#/tree/${code}` }, String(code)),
    count(arrivals),
    count(images),
  ]);
  return [
    h("h2", {}, "Before the first check"),
    h(
      "p",
      { class: "progress" },
      h("meter", { min: "0", max: String(wanted), ".value": arrived, "aria-label": "arrivals" }),
      `${count(arrived)} of the ${count(wanted)} arrivals ${what} have come.${share}`,
    ),
    rows.length ? table("Where arrivals lie", ["First code", "Arrivals", "All images"], rows) : null,
  ].filter(Boolean);
}

function checked(report) {
  const { monitors } = report.newest;
  const alarms = monitors.filter((monitor) => monitor.alarm);
  const said = alarms.length
    ? note(`${plural(alarms.length, "monitor")} beyond the limit: ${alarms.map(({ name }) => name).join(", ")}.`, "bad")
    : note("No monitor is beyond its limit.", "good");
  return [
    said,
    h("h2", {}, "Monitors now, in units of their limit"),
    bars("Effect of each monitor as a share of its limit", monitors.map((monitor) => ({
      name: monitor.name,
      value: monitor.effect === null ? null : monitor.effect / monitor.effect_limit,
      alarm: monitor.alarm,
    }))),
    h("h2", {}, "The strongest over time"),
    lines("Largest effect of each check, in units of the limit", [{
      name: "strongest monitor",
      kind: "ours",
      points: report.looks.map((look) => [new Date(look.at), strongest(look.monitors)]),
    }], { low: 0, high: null, limit: 1, marks: report.switches }),
  ];
}

function strongest(monitors) {
  return Math.max(0, ...monitors.map(({ effect, effect_limit: limit }) => (effect ?? 0) / limit));
}

function recorded({ alarms, jobs }) {
  const parts = [];
  if (alarms.length) {
    const rows = alarms.map((alarm) => [
      when(alarm.raised_at),
      alarm.monitor,
      h("span", { class: `mark ${alarm.cleared_at ? "" : "bad"}` }, alarm.cleared_at ? `${alarm.level}, cleared` : alarm.level),
      `generation ${alarm.generation}`,
    ]);
    parts.push(h("h2", {}, "Alarms"), table("Alarms", ["Raised", "Monitor", "Level", "Of"], rows));
  }
  if (jobs.length) {
    const rows = jobs.map((job) => [
      h("code", {}, job.job),
      job.last_done_at ? when(job.last_done_at) : "never",
      `${job.runs.done} done, ${job.runs.failed} failed`,
    ]);
    parts.push(h("h2", {}, "Jobs"), table("Jobs", ["Job", "Last done", "Runs"], rows));
  }
  return parts;
}
