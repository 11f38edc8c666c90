// Filters: rows of conditions that are joined by "and", written as the API reads them.

import { h } from "./dom.js";

const OPERATORS = {
  equals: "is",
  any: "is one of (by commas)",
  gte: "from",
  lte: "up to",
  not: "is not",
  exists: "is there",
  missing: "is not there",
};

const WITHOUT_VALUE = ["exists", "missing"];

// RFC 3339, and the forms in which people write its beginning.
const DAY = /^\d{4}-\d{2}-\d{2}$/;

/** A builder; `changed` is told of each change, `filter()` is the filter or null. */
export function filterBuilder(changed) {
  const rows = h("ul", { class: "conditions" });
  const add = () => {
    rows.append(condition(changed));
    rows.lastElementChild.querySelector("input").focus();
  };
  const element = h(
    "details",
    { class: "filters" },
    h("summary", {}, "Filter by metadata"),
    rows,
    h("button", { type: "button", class: "quiet", onclick: add }, "Add a condition"),
  );
  const filter = () => joined([...rows.children].map(read).filter(Boolean));
  return { element, filter };
}

function condition(changed) {
  const field = h("input", { type: "text", name: "field", "aria-label": "field", placeholder: "field", spellcheck: "false" });
  const value = h("input", { type: "text", name: "value", "aria-label": "value", placeholder: "value", class: "value" });
  const operator = h(
    "select",
    { name: "operator", "aria-label": "condition" },
    Object.entries(OPERATORS).map(([name, words]) => h("option", { value: name }, words)),
  );
  const row = h("li", {}, field, operator, value);
  operator.addEventListener("change", () => {
    value.hidden = WITHOUT_VALUE.includes(operator.value);
  });
  const remove = () => {
    row.remove();
    changed();
  };
  row.append(h("button", { type: "button", class: "quiet", onclick: remove, "aria-label": "Remove" }, "×"));
  row.addEventListener("change", changed);
  return row;
}

function read(row) {
  const [field, value] = [...row.querySelectorAll("input")].map((input) => input.value.trim());
  const operator = row.querySelector("select").value;
  if (!field) return null;
  if (operator === "exists") return { field, exists: true };
  if (operator === "missing") return { field, exists: false };
  if (!value) return null;
  if (operator === "any") return { field, any: value.split(",").map((one) => typed(one.trim())) };
  if (operator === "not") return { not: { field, equals: typed(value) } };
  if (operator === "equals") return { field, equals: typed(value) };
  return { field, [operator]: DAY.test(value) ? `${value}T00:00:00Z` : typed(value) };
}

/** What a text means: true, a number, or itself. */
export function typed(text) {
  if (text === "true" || text === "false") return text === "true";
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function joined(conditions) {
  if (!conditions.length) return null;
  return conditions.length === 1 ? conditions[0] : { and: conditions };
}
