// The tree: branches with what they say and some of their images, down to the images of a leaf.

import { ask, picture } from "./api.js";
import { announce, busy, h, plural } from "./dom.js";
import { grid } from "./grid.js";

const THUMBNAIL_PX = 220;

const LEVELS = 4;

export async function tree(place, { rest, signal }) {
  const prefix = rest[0] ?? "";
  const path = prefix ? `v1/identifiers/${encodeURIComponent(prefix)}` : "v1/identifiers";
  const node = await ask(path, { signal });
  const level = node.codes.length;
  place.append(
    trail(node.codes),
    h("h1", {}, level ? title(level, prefix) : "The tree of identifiers"),
    h("p", { class: "explanation lead" }),
    h("p", { class: "quiet-text" }, about(node, level)),
    level === LEVELS ? leaf(node, path, signal) : branchList(node.branches),
  );
  announce(about(node, level));
  if (level) explain(place, path, signal);
}

const title = (level, prefix) => (level === LEVELS ? `Leaf ${prefix}` : `Branch ${prefix}`);

function about(node, level) {
  const images = plural(node.images, "image");
  if (level === LEVELS) return `${images}, posted here first.`;
  const below = plural(node.branches.length, "branch", "branches");
  return `${images} in ${below} of level ${level + 1}. Generation ${node.generation}.`;
}

function trail(codes) {
  const steps = [h("li", {}, codes.length ? h("a", { href: "#/tree" }, "All") : h("span", { "aria-current": "page" }, "All"))];
  codes.forEach((code, index) => {
    const prefix = codes.slice(0, index + 1).join(".");
    const last = index === codes.length - 1;
    const step = last
      ? h("span", { class: `code level-${index + 1}`, "aria-current": "page" }, String(code))
      : h("a", { class: `code level-${index + 1}`, href: `#/tree/${prefix}` }, String(code));
    steps.push(h("li", {}, step));
  });
  const up = codes.length
    ? h("a", { class: "button quiet", href: ["#/tree", ...(codes.length > 1 ? [codes.slice(0, -1).join(".")] : [])].join("/") }, "Up")
    : null;
  return h("div", { class: "trail" }, h("nav", { "aria-label": "Place in the tree" }, h("ol", { class: "codes" }, steps)), up);
}

/** Branches as cards: four of their images, and how many there are. */
export function branchList(branches) {
  return h(
    "ul",
    { class: "branches" },
    branches.map((branch) =>
      h(
        "li",
        {},
        h(
          "a",
          { class: "branch", href: `#/tree/${branch.prefix}` },
          h(
            "span",
            { class: "mosaic", "data-images": branch.examples.length },
            branch.examples.map(({ link }) =>
              h("img", { src: picture(link, THUMBNAIL_PX), alt: "", loading: "lazy", decoding: "async" }),
            ),
          ),
          h("span", { class: "label" }, h("strong", {}, branch.prefix), h("span", {}, plural(branch.images, "image"))),
        ),
      ),
    ),
  );
}

function leaf(node, path, signal) {
  const pictures = grid("Images of this leaf");
  const more = h("div", { class: "more" });
  const show = (page) => {
    pictures.add(page.leaf);
    more.replaceChildren();
    if (page.next_suffix === null) return;
    const wrong = h("div", {});
    const next = async () => show(await ask(path, { parameters: { after: page.next_suffix }, signal }));
    const button = h("button", { type: "button", onclick: () => busy(button, wrong, next) }, "More images");
    more.append(button, wrong);
  };
  show(node);
  return h("div", {}, pictures.list, more);
}

/** What the codes say in words. The model may take a moment, or have learnt no words. */
async function explain(place, path, signal) {
  try {
    const { explanation } = await ask(path, { parameters: { explain: true }, signal });
    if (explanation) place.querySelector(".explanation").textContent = `“${explanation}”`;
  } catch {
    // The view is complete without.
  }
}
