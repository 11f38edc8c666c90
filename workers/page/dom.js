// Elements. Texts of others get into the page as text only: nothing here parses HTML.

/** An element with attributes, listeners (`onclick`), properties (`.value`) and children. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for a drawing. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith(".")) element[name.slice(1)] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Say something to a screen reader. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

/** Visible text that a screen reader hears too. */
export function note(text, kind = "") {
  return h("p", { class: `note ${kind}` }, text);
}

export function problem(error) {
  return h("p", { class: "notice bad", role: "alert" }, error.message);
}

/** Run what takes a moment: its button waits, and what goes wrong is shown beside it. */
export async function busy(button, place, work) {
  button.disabled = true;
  place.replaceChildren();
  try {
    await work();
  } catch (error) {
    place.replaceChildren(problem(error));
  } finally {
    button.disabled = false;
  }
}

/** Ask before something is changed; resolves to whether the answer was yes. */
export function confirmed(title, text, yes) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { class: "small", "aria-labelledby": "confirm-title", onclose: () => done() },
      h("h2", { id: "confirm-title" }, title),
      h("p", {}, text),
      h(
        "form",
        { method: "dialog", class: "actions" },
        h("button", { value: "yes", class: "primary" }, yes),
        h("button", { value: "no" }, "Cancel"),
      ),
    );
    const done = () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    };
    document.body.append(dialog);
    dialog.showModal();
  });
}

const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export function when(text) {
  return h("time", { datetime: text, title: text }, DATE.format(new Date(text)));
}

export const count = (number) => new Intl.NumberFormat().format(number);

export const percent = (share) => `${(share * 100).toFixed(1)}%`;

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A table in a box that can be scrolled by keyboard. */
export function table(caption, head, rows) {
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h(
      "table",
      {},
      h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col" }, cell)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell))))),
    ),
  );
}
