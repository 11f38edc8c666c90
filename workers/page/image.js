// One image: its picture, what is stored of it, and why an answer has it.

import { ask, imagePath, picture } from "./api.js";
import { count, h, problem, when } from "./dom.js";

const LARGE_PX = 1200;

let open = null;

/** Close the dialog of an image, if one is open. */
export function closeImage() {
  open?.close();
}

/** Show an image; `about` has `leaves`, those that a query reached. */
export async function showImage(image, about) {
  const details = h("div", { class: "details" }, h("p", { class: "quiet-text" }, "Reading…"));
  const dialog = h(
    "dialog",
    { class: "image", "aria-labelledby": "image-title" },
    h(
      "form",
      { method: "dialog", class: "close" },
      h("button", { "aria-label": "Close", autofocus: true }, "×"),
    ),
    h("div", { class: "stage" }, h("img", { src: picture(image.link, LARGE_PX), alt: "" })),
    h("div", { class: "side" }, h("h2", { id: "image-title" }, image.image_id), details),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (open === dialog) open = null;
  });
  // A click beside it closes it too.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  open = dialog;
  try {
    const stored = await ask(imagePath(image.image_id));
    dialog.querySelector(".stage img").alt = stored.captions[0] ?? `The picture ${image.image_id}`;
    details.replaceChildren(...described(stored, image, about));
    explain(stored, details);
  } catch (error) {
    details.replaceChildren(problem(error));
  }
}

function described(stored, image, about) {
  return [
    ...stored.captions.map((caption) => h("p", { class: "caption" }, caption)),
    h(
      "div",
      { class: "actions" },
      h(
        "a",
        { class: "button primary", href: `#/search?${new URLSearchParams({ like: stored.image_id })}` },
        "Similar images",
      ),
      stored.identifier && inTree(stored.identifier),
    ),
    image.score === undefined ? null : why(image, stored, about),
    h("h3", {}, "Identifier"),
    stored.identifier
      ? identifier(stored.identifier)
      : h("p", { class: "quiet-text" }, "Not yet: it was accepted and waits to be indexed."),
    h("p", { class: "explanation quiet-text" }),
    metadata(stored.metadata),
    h("h3", {}, "Stored"),
    facts([
      ["Size", `${count(stored.width)} × ${count(stored.height)} pixels`],
      ["Arrived", when(stored.arrived_at)],
      ["Searchable", stored.indexed_at ? when(stored.indexed_at) : "not yet"],
      ["Version", String(stored.version)],
      ["From", h("span", { class: "break" }, stored.uri)],
    ]),
  ].filter(Boolean);
}

function inTree(codes) {
  return h("a", { class: "button", href: treeHref(codes.slice(0, 4)) }, "Its leaf in the tree");
}

const treeHref = (codes) => `#/tree/${codes.join(".")}`;

/** The codes of an identifier, each a link to the branch that it leads to. */
export function identifier(codes) {
  const parts = codes.map((code, level) => {
    const last = level === 4;
    const prefix = codes.slice(0, level + 1);
    const name = last ? `suffix ${code}` : `level ${level + 1}, code ${code}`;
    return h(
      "li",
      {},
      last
        ? h("span", { class: "code suffix", "aria-label": name }, String(code))
        : h("a", { class: `code level-${level + 1}`, href: treeHref(prefix), "aria-label": name }, String(code)),
    );
  });
  return h("ol", { class: "codes" }, parts);
}

/** Why this image is in the answer, as far as the answer tells. */
function why(image, stored, about) {
  const leaves = new Map((about?.leaves ?? []).map((leaf) => [leaf.codes.join("."), leaf]));
  const live = stored.generations.find((place) => place.state === "live");
  const reached = (live?.leaves ?? []).filter((codes) => leaves.has(codes.join(".")));
  const rows = [["Score", image.score.toFixed(3)]];
  if (typeof image.relevance === "number") rows.push(["Relevance", meter(image.relevance)]);
  if (typeof image.cosine === "number") rows.push(["Similarity", meter(image.cosine)]);
  const shown = reached.map((codes) =>
    h(
      "li",
      {},
      h("a", { href: treeHref(codes) }, codes.join(".")),
      ` reached with log-probability ${leaves.get(codes.join(".")).log_probability.toFixed(2)}`,
    ),
  );
  return h(
    "section",
    { class: "why" },
    h("h3", {}, "Why this image"),
    facts(rows),
    shown.length
      ? h("div", {}, h("p", { class: "quiet-text" }, "The decoder came to these leaves of it:"), h("ul", {}, shown))
      : null,
  );
}

function meter(cosine) {
  return h(
    "span",
    { class: "meter" },
    h("meter", { min: "0", max: "1", ".value": Math.max(0, cosine), "aria-label": "cosine" }),
    cosine.toFixed(3),
  );
}

function metadata(fields) {
  const rows = Object.entries(fields).map(([name, value]) => [
    name,
    Array.isArray(value) ? value.join(", ") : String(value),
  ]);
  return rows.length ? h("div", {}, h("h3", {}, "Metadata"), facts(rows)) : null;
}

export function facts(rows) {
  return h("dl", { class: "facts" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** What the identifier says in words; the model may take a moment, or have learnt none. */
async function explain(stored, details) {
  if (!stored.identifier) return;
  const place = details.querySelector(".explanation");
  try {
    const { explanation } = await ask(imagePath(stored.image_id), { parameters: { explain: true } });
    if (explanation) place.textContent = `It says: “${explanation}”`;
  } catch {
    // The page is complete without.
  }
}
