// Generations: which there are, what their gates say, and which of them answers.

import { ask } from "./api.js";
import { announce, busy, confirmed, h, note, percent, plural, table, when } from "./dom.js";
import { facts } from "./image.js";

// While a change goes on it is looked at so often.
const LOOK_MS = 1000;

const KINDS = { live: "good", failed: "bad", shadow: "ours", building: "ours" };

export async function generations(place, { signal }) {
  const desk = { said: h("div", {}), list: h("div", {}), signal };
  place.append(
    h("h1", {}, "Generations"),
    h("p", { class: "lead" }, "One answers. A switch is a moment, loses no query, and can be taken back."),
    desk.said,
    desk.list,
  );
  const answer = await ask("v1/generations", { signal });
  show(desk, answer);
  if (answer.change?.state === "running") await follow(desk, answer);
}

function show(desk, { generations: all, fallback }) {
  const newest = all.toReversed();
  desk.list.replaceChildren(
    fallback === null ? "" : rollBackButton(desk, fallback),
    h("ol", { class: "generations", reversed: true }, newest.map((generation) => card(desk, generation))),
  );
}

function rollBackButton(desk, fallback) {
  const wrong = h("div", {});
  const button = h("button", { type: "button" }, `Roll back to ${fallback}…`);
  button.addEventListener("click", async () => {
    const sure = await confirmed(`Roll back to generation ${fallback}?`, "It was live before, and answers again at once.", "Roll back");
    if (sure) await busy(button, wrong, () => change(desk, "v1/generations/rollback"));
  });
  return h("div", { class: "actions" }, button, wrong);
}

function card(desk, generation) {
  const wrong = h("div", {});
  const promote = h("button", { type: "button", class: "primary" }, "Make it live…");
  promote.addEventListener("click", async () => {
    const text = "Its gate is asked first: it must not lose recall, on old images or new ones.";
    const sure = await confirmed(`Make generation ${generation.id} live?`, text, "Ask the gate");
    if (sure) await busy(promote, wrong, () => change(desk, `v1/generations/${generation.id}/promote`));
  });
  const state = generation.dropped ? "dropped" : generation.state;
  return h(
    "li",
    { class: `card generation ${KINDS[state] ?? ""}` },
    h("h2", {}, `Generation ${generation.id} `, h("span", { class: `mark ${KINDS[state] ?? ""}` }, state)),
    facts([
      ["Made", when(generation.created_at)],
      ["Live since", generation.live_at ? when(generation.live_at) : "never"],
      ["Codebook", generation.codebook ?? "—"],
    ]),
    generation.gate && gate(generation.gate),
    state === "shadow" ? h("div", { class: "actions" }, promote, wrong) : null,
  );
}

function gate(verdict) {
  const rows = Object.entries(verdict.probes ?? {}).map(([cohort, probe]) => [
    cohort,
    String(probe.queries),
    percent(probe["live_R@10"]),
    percent(probe["candidate_R@10"]),
  ]);
  const passed = verdict.passed;
  return h(
    "details",
    { ".open": !passed },
    h("summary", {}, "Gate ", h("span", { class: `mark ${passed ? "good" : "bad"}` }, passed ? "passed" : "refused")),
    verdict.reasons?.length ? h("ul", { class: "reasons" }, verdict.reasons.map((reason) => h("li", {}, reason))) : null,
    rows.length ? table("Recall at 10 by the age of the images", ["Images", "Queries", "Live", "Candidate"], rows) : null,
    h("p", { class: "quiet-text" }, besides(verdict)),
  );
}

function besides(verdict) {
  const parts = [`Against generation ${verdict.against}`];
  if (typeof verdict.latency_ratio === "number") parts.push(`${verdict.latency_ratio.toFixed(2)} × its time`);
  if (verdict.missing !== null && verdict.missing !== undefined) parts.push(plural(verdict.missing, "missing image"));
  if (verdict.shadow_queries) parts.push(plural(verdict.shadow_queries, "shadow query", "shadow queries"));
  return `${parts.join(" · ")}.`;
}

async function change(desk, path) {
  const answer = await ask(path, { method: "POST", signal: desk.signal });
  await follow(desk, answer);
}

/** Look until a change is done; it goes on in the service whoever looks. */
async function follow(desk, answer) {
  while (answer.change?.state === "running") {
    say(desk, "The change goes on; a gate may take minutes.", "");
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    answer = await ask("v1/generations", { signal: desk.signal });
  }
  show(desk, answer);
  const live = answer.generations.find((generation) => generation.state === "live");
  const failed = answer.change?.state === "failed";
  const words = failed ? answer.change.problem : `Done. Generation ${live?.id} answers.`;
  say(desk, words, failed ? "bad" : "good");
  desk.said.closest(".view").querySelector("h1").focus();
}

function say(desk, words, kind) {
  desk.said.replaceChildren(note(words, kind));
  announce(words);
}
