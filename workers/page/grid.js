// Pictures in rows. Tab leads into them once; arrow keys go on from picture to picture.

import { picture } from "./api.js";
import { h } from "./dom.js";
import { showImage } from "./image.js";

const SMALL_PX = 360;

/** What an image is called where there is no room: its caption, or the end of its id. */
export function nameOf(image) {
  return image.captions?.[0] || image.image_id.split("/").pop();
}

/** One picture; `about` is what its dialog says beside what is stored. */
function tile(image, about) {
  const rank = image.rank ? h("span", { class: "rank", "aria-hidden": "true" }, String(image.rank)) : null;
  const label = image.rank ? `Number ${image.rank}: ${nameOf(image)}` : nameOf(image);
  return h(
    "li",
    {},
    h(
      "button",
      {
        type: "button",
        class: "tile",
        tabindex: "-1",
        "aria-label": label,
        "aria-haspopup": "dialog",
        onclick: () => showImage(image, about),
      },
      h("img", { src: picture(image.link, SMALL_PX), alt: "", loading: "lazy", decoding: "async" }),
      rank,
      h("span", { class: "name", "aria-hidden": "true" }, nameOf(image)),
    ),
  );
}

/** A list of pictures: `add` adds more at its end, `arrive` at its beginning, which moves no focus. */
export function grid(label) {
  const list = h("ol", { class: "grid", "aria-label": label, onkeydown: (event) => move(list, event) });
  const add = (images, about = null) => {
    list.append(...images.map((image) => tile(image, about)));
    const first = list.querySelector("button");
    if (first && !list.querySelector('[tabindex="0"]')) first.tabIndex = 0;
  };
  const arrive = (image) => {
    const made = tile(image, null);
    list.prepend(made);
    const entry = list.querySelector('[tabindex="0"]');
    if (!list.contains(document.activeElement)) {
      // Nobody is among them: Tab leads to the first one.
      if (entry) entry.tabIndex = -1;
      made.querySelector("button").tabIndex = 0;
    }
    return made;
  };
  return { list, add, arrive };
}

const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: "down", ArrowUp: "up", Home: "first", End: "last" };

function move(list, event) {
  const step = STEPS[event.key];
  const buttons = [...list.querySelectorAll("button.tile")];
  const at = buttons.indexOf(document.activeElement);
  if (step === undefined || at < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const target = buttons[place(buttons, at, step)];
  if (!target) return;
  buttons[at].tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
  target.scrollIntoView({ block: "nearest" });
}

function place(buttons, at, step) {
  if (step === "first") return 0;
  if (step === "last") return buttons.length - 1;
  const columns = inOneRow(buttons);
  if (step === "down") return at + columns;
  if (step === "up") return at - columns;
  return at + step;
}

function inOneRow(buttons) {
  const { top } = buttons[0].getBoundingClientRect();
  const next = buttons.findIndex((button) => button.getBoundingClientRect().top > top + 1);
  return next < 0 ? buttons.length : next;
}
