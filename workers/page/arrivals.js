// Arrivals: images as they come, newest first. It looks again and again while somebody can see it.

import { ask } from "./api.js";
import { announce, h, note, plural, problem, when } from "./dom.js";
import { grid } from "./grid.js";

// Images of one look, between looks, and how many are kept below each other.
const FEW = 24;
const PAUSE_MS = 3000;
const MOST = 120;

export async function arrivals(place, { signal }) {
  const desk = new ArrivalDesk(place, signal);
  await desk.look();
  desk.wait();
}

class ArrivalDesk {
  constructor(place, signal) {
    this.signal = signal;
    this.tiles = new Map();
    this.paused = false;
    this.pictures = grid("Arrivals, newest first");
    this.summary = h("div", {});
    this.button = h("button", { type: "button", "aria-pressed": "false", onclick: () => this.turn() }, "Pause");
    place.append(
      h("h1", {}, "Arrivals"),
      h("p", { class: "lead" }, "Images as they come, newest first. Looks again every three seconds."),
      h("div", { class: "actions" }, this.button),
      this.summary,
      this.pictures.list,
    );
  }

  turn() {
    this.paused = !this.paused;
    this.button.setAttribute("aria-pressed", String(this.paused));
    if (!this.paused) this.again();
  }

  /** The next look; none while it is paused, hidden, or left for another view. */
  wait() {
    clearTimeout(this.timer);
    if (!this.signal.aborted) this.timer = setTimeout(() => this.again(), PAUSE_MS);
  }

  async again() {
    if (this.signal.aborted || this.paused) return;
    if (!document.hidden) {
      try {
        await this.look();
      } catch (error) {
        if (this.signal.aborted) return;
        this.summary.replaceChildren(problem(error));
      }
    }
    this.wait();
  }

  async look() {
    const first = this.tiles.size === 0;
    const parameters = { order: "newest", limit: FEW };
    const { images } = await ask("v1/images", { parameters, signal: this.signal });
    const fresh = images.filter((image) => !this.tiles.has(image.image_id));
    for (const image of images) this.update(image);
    // The oldest of them first: each goes before all others.
    for (const image of fresh.reverse()) this.put(image);
    this.shorten();
    const [newest] = images;
    const words = newest
      ? h("p", { class: "quiet-text" }, "The last one came ", when(newest.arrived_at), ".")
      : note("Nothing has arrived yet.");
    this.summary.replaceChildren(words);
    if (fresh.length && !first) announce(plural(fresh.length, "new image"));
  }

  put(image) {
    const made = this.pictures.arrive(image);
    made.querySelector("button").append(h("span", { class: "state" }));
    this.tiles.set(image.image_id, made);
    this.update(image);
  }

  update(image) {
    const waits = image.state !== "indexed";
    const mark = this.tiles.get(image.image_id)?.querySelector(".state");
    mark?.replaceChildren(...(waits ? [h("span", { class: "mark" }, "not searchable yet")] : []));
  }

  /** Take away the oldest, but not one that somebody is at, or would get to by Tab. */
  shorten() {
    for (const [imageId, made] of this.tiles) {
      if (this.tiles.size <= MOST) return;
      if (made.querySelector('[tabindex="0"]')) continue;
      made.remove();
      this.tiles.delete(imageId);
    }
  }
}
