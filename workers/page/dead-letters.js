// Dead letters: events that could not be used, and the button that sends them again.

import { ask } from "./api.js";
import { announce, busy, confirmed, h, note, plural, table, when } from "./dom.js";

export async function deadLetters(place, { signal }) {
  const said = h("div", {});
  const list = h("div", {});
  place.append(
    h("h1", {}, "Dead letters"),
    h("p", { class: "lead" }, "Events that could not be used, newest first. Send them again once the cause is gone."),
    said,
    list,
  );
  await show(list, said, signal);
}

async function show(list, said, signal) {
  const { dead_letters: letters } = await ask("v1/dead-letters", { signal });
  const wrong = h("div", {});
  const button = h("button", { type: "button", class: "primary" }, "Send all again…");
  button.addEventListener("click", async () => {
    const sure = await confirmed(
      "Send all again?",
      "Every event that is still refused is published once more. Those that fail again come back here.",
      "Send again",
    );
    if (sure) await busy(button, wrong, () => replay(list, said, signal));
  });
  list.replaceChildren(
    ...(letters.length ? [button, wrong, letterTable(letters)] : [note("There are none. Everything that arrived could be used.", "good")]),
  );
}

async function replay(list, said, signal) {
  const done = await ask("v1/dead-letters/replay", { method: "POST", signal });
  const lost = done.lost ? ` ${plural(done.lost, "event")} could not be read any more.` : "";
  const words = `${plural(done.replayed, "event")} sent again.${lost}`;
  said.replaceChildren(note(words, "good"));
  announce(words);
  await show(list, said, signal);
  said.closest(".view").querySelector("h1").focus();
}

function letterTable(letters) {
  const rows = letters.map((letter) => [
    when(letter.published_at),
    h("span", { class: "break" }, letter.image_id || "—"),
    h("span", { class: "mark bad" }, letter.code),
    h("span", { class: "break" }, letter.reason),
    h("code", { class: "break" }, origin(letter)),
  ]);
  return table("Dead letters", ["When", "Image", "Code", "Reason", "From"], rows);
}

function origin(letter) {
  if (letter.origin_topic === null) return letter.stage;
  return `${letter.origin_topic} ${letter.origin_partition}:${letter.origin_offset}`;
}
