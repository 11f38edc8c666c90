// Search: by a text, by a picture of one's own, or by one that is stored.

import { ask } from "./api.js";
import { announce, busy, count, h, plural, problem } from "./dom.js";
import { filterBuilder } from "./filter.js";
import { grid } from "./grid.js";
import { branchList } from "./tree.js";

// Images of a first answer, and of one that is asked to go on.
const FEW = 48;
const MANY = 1000;

// Letters from which a text is asked for while it is typed, and the pause after the last one.
const ENOUGH_LETTERS = 3;
const PAUSE_MS = 350;

const PICTURES = "image/jpeg,image/png,image/webp";

export async function search(place, { parameters, signal }) {
  const desk = new SearchDesk(place, signal);
  const like = parameters.get("like");
  const text = parameters.get("q");
  if (like) await desk.ask({ image_id: like });
  else if (text) await desk.ask({ query: text });
  else await desk.welcome();
  if (text) desk.field.value = text;
}

class SearchDesk {
  constructor(place, signal) {
    this.signal = signal;
    this.asking = new AbortController();
    this.subject = null;
    this.filters = filterBuilder(() => this.again());
    this.field = h("input", {
      id: "text",
      type: "search",
      placeholder: "Two small red circles on navy",
      autocomplete: "off",
      enterkeyhint: "search",
      "aria-describedby": "search-help",
      oninput: () => this.typed(),
    });
    this.upload = h("input", { id: "picture", type: "file", accept: PICTURES, class: "unseen" });
    this.upload.addEventListener("change", () => this.uploaded(this.upload.files[0]));
    this.asked = h("div", { class: "asked" });
    this.summary = h("p", { class: "summary" });
    this.results = h("div", { class: "results" });
    this.more = h("div", { class: "more" });
    place.append(this.form(), this.asked, this.summary, this.results, this.more);
    this.takeDroppedPictures(place);
  }

  form() {
    const submit = (event) => {
      event.preventDefault();
      clearTimeout(this.pause);
      this.askText();
    };
    return h(
      "form",
      { class: "ask", role: "search", onsubmit: submit },
      h("h1", {}, "Search"),
      h("label", { for: "text", class: "unseen" }, "What should the images show?"),
      h(
        "div",
        { class: "line" },
        this.field,
        h("button", { class: "primary" }, "Search"),
        this.upload,
        h("label", { for: "picture", class: "button" }, "By a picture"),
      ),
      h("p", { id: "search-help", class: "quiet-text" }, "In words, or drop or paste a picture."),
      this.filters.element,
    );
  }

  takeDroppedPictures(place) {
    const { signal } = this;
    const taken = (files) => [...(files ?? [])].find((file) => file.type.startsWith("image/"));
    document.addEventListener("paste", (event) => this.uploaded(taken(event.clipboardData?.files)), { signal });
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      place.classList.add("dropping");
    }, { signal });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) place.classList.remove("dropping");
    }, { signal });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      place.classList.remove("dropping");
      this.uploaded(taken(event.dataTransfer?.files));
    }, { signal });
  }

  typed() {
    clearTimeout(this.pause);
    if (this.field.value.trim().length >= ENOUGH_LETTERS) {
      this.pause = setTimeout(() => this.askText(), PAUSE_MS);
    }
  }

  askText() {
    const query = this.field.value.trim();
    if (!query || this.signal.aborted) return;
    history.replaceState(null, "", `#/search?${new URLSearchParams({ q: query })}`);
    this.run({ query });
  }

  uploaded(file) {
    if (file) this.run({ file });
  }

  again() {
    if (this.subject) this.run(this.subject);
  }

  /** Ask; what goes wrong is shown in the place of the answer. */
  run(subject) {
    return this.ask(subject).catch((error) => {
      if (error.name === "AbortError") return;
      this.summary.replaceChildren();
      this.results.replaceChildren(problem(error));
    });
  }

  async ask(subject, k = FEW) {
    this.asking.abort();
    this.asking = new AbortController();
    const signal = AbortSignal.any([this.asking.signal, this.signal]);
    this.subject = subject;
    this.results.setAttribute("aria-busy", "true");
    this.more.replaceChildren();
    this.showSubject();
    try {
      const answer = await answered(subject, k, this.filters.filter(), signal);
      this.show(answer, k);
    } finally {
      if (!signal.aborted) this.results.removeAttribute("aria-busy");
    }
  }

  showSubject() {
    const { file, image_id } = this.subject;
    URL.revokeObjectURL(this.preview);
    this.preview = file ? URL.createObjectURL(file) : null;
    if (this.preview) {
      this.field.value = "";
      this.asked.replaceChildren(
        h("img", { src: this.preview, alt: "Your picture" }),
        h("p", {}, "Images like ", h("strong", {}, file.name)),
      );
    } else if (image_id) {
      const shown = h("img", { src: `v1/images/${encodeURIComponent(image_id)}/picture?size=160`, alt: "" });
      // Where keys are needed a picture opens by a link of an answer only.
      shown.addEventListener("error", () => shown.remove());
      this.asked.replaceChildren(shown, h("p", {}, "Images like ", h("strong", {}, image_id)));
    } else {
      this.asked.replaceChildren();
    }
  }

  show(answer, k) {
    const number = answer.results.length;
    const said = number
      ? `${plural(number, "image")} in ${Math.round(answer.took_ms)} ms`
      : "No image matches. Take a condition out, or ask in other words.";
    this.summary.replaceChildren(
      h("strong", {}, said),
      number ? ` · ${count(answer.candidates)} scored · generation ${answer.generation}` : "",
    );
    announce(said);
    const pictures = grid("Images, best first");
    pictures.add(answer.results, answer.explanation);
    this.results.replaceChildren(pictures.list);
    if (k === FEW && number === FEW) this.offer("More images", () => this.ask(this.subject, MANY));
    else this.offerPage(answer, pictures);
  }

  offerPage(answer, pictures) {
    this.more.replaceChildren();
    if (!answer.cursor) return;
    this.offer("More images", async () => {
      const next = await ask("v1/query", { method: "POST", json: { cursor: answer.cursor }, signal: this.signal });
      pictures.add(next.results, answer.explanation);
      announce(`${plural(next.results.length, "more image")}`);
      this.offerPage({ ...next, explanation: answer.explanation }, pictures);
    });
  }

  offer(words, work) {
    const wrong = h("div", {});
    const button = h("button", { type: "button", onclick: () => busy(button, wrong, work) }, words);
    this.more.replaceChildren(button, wrong);
  }

  /** Before anything is asked: where one could begin to look around. */
  async welcome() {
    const { branches, generation } = await ask("v1/identifiers", { signal: this.signal });
    this.results.replaceChildren(
      h("h2", {}, "Or look around"),
      h("p", { class: "quiet-text" }, `The largest branches of the tree of generation ${generation}.`),
      branchList(branches.toSorted((one, other) => other.images - one.images).slice(0, 8)),
    );
  }
}

function answered(subject, k, filter, signal) {
  if (subject.file) {
    const parameters = { k, explain: true, filter: filter && JSON.stringify(filter) };
    const { file } = subject;
    return ask("v1/query", { method: "POST", body: file, type: file.type, parameters, signal });
  }
  const json = { ...subject, k, explain: true, ...(filter && { filter }) };
  return ask("v1/query", { method: "POST", json, signal });
}
