// The page: one view at a time, named by the part of the address behind #.

import { key } from "./api.js";
import { arrivals } from "./arrivals.js";
import { announce, h, problem } from "./dom.js";
import { deadLetters } from "./dead-letters.js";
import { generations } from "./generations.js";
import { closeImage } from "./image.js";
import { reports } from "./reports.js";
import { search } from "./search.js";
import { tree } from "./tree.js";

const VIEWS = { search, tree, arrivals, "dead-letters": deadLetters, generations, reports };

const main = document.getElementById("main");
const keyButton = document.getElementById("key");

// Ends what the former view began.
let leaving = new AbortController();

async function show({ focus = true } = {}) {
  leaving.abort();
  leaving = new AbortController();
  closeImage();
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  const view = VIEWS[name] ?? search;
  const current = VIEWS[name] ? name : "search";
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.hash === `#/${current}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const { signal } = leaving;
  const place = h("div", { class: `view ${current}`, "aria-busy": "true" });
  main.replaceChildren(place);
  try {
    await view(place, { rest, parameters: new URLSearchParams(query ?? ""), signal });
  } catch (error) {
    if (!signal.aborted) place.append(problem(error));
  } finally {
    place.removeAttribute("aria-busy");
  }
  if (signal.aborted) return;
  const heading = main.querySelector("h1");
  document.title = heading ? `${heading.textContent} · sigma-stream` : "sigma-stream";
  if (focus && heading && !main.contains(document.activeElement)) {
    heading.tabIndex = -1;
    heading.focus();
  }
}

function askForKey() {
  if (document.querySelector("dialog.key")) return;
  const field = h("input", {
    id: "key-field",
    type: "password",
    autocomplete: "off",
    ".value": key.get(),
    "aria-describedby": "key-about",
  });
  const dialog = h(
    "dialog",
    { class: "small key", "aria-labelledby": "key-title" },
    h("h2", { id: "key-title" }, "A key, please"),
    h("p", { id: "key-about" }, "This service answers those who have a key. It stays in this tab."),
    h(
      "form",
      { method: "dialog" },
      h("label", { for: "key-field" }, "Key"),
      field,
      h("div", { class: "actions" }, h("button", { class: "primary", value: "use" }, "Use it")),
    ),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (dialog.returnValue !== "use") return;
    key.set(field.value.trim());
    show();
  });
  document.body.append(dialog);
  dialog.showModal();
}

document.addEventListener("key-needed", () => {
  keyButton.hidden = false;
  askForKey();
});
keyButton.addEventListener("click", askForKey);
keyButton.hidden = !key.get();

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const field = document.getElementById("text");
  if (field) field.focus();
  else location.hash = "#/search";
});

window.addEventListener("hashchange", () => show());
window.addEventListener("unhandledrejection", (event) => {
  // A view that was left while it waited.
  if (event.reason?.name === "AbortError") event.preventDefault();
});
announce("");
show({ focus: false });
