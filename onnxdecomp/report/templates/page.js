// Sorting, filtering and the theme: without scripts the page is whole, only these are not there.
"use strict";
const root = document.documentElement;
root.classList.add("js");

document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

const keyOf = (row, column) => {
  const cell = row.cells[column];
  const number = cell.querySelector("data");
  return number ? Number(number.value) : cell.textContent.trim().toLowerCase();
};

// Numbers before words, empty cells last in either direction.
const compare = (a, b, sign) => {
  const empty = (key) => key === "" || key === "–";
  if (empty(a) || empty(b)) return empty(a) - empty(b);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
};

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // What is large is looked for first.
      const numeric = rows.some((row) => row.cells[column].querySelector("data"));
      const before = head.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : numeric;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const sign = descending ? -1 : 1;
      body.append(...[...rows].sort((a, b) => compare(keyOf(a, column), keyOf(b, column), sign)));
    });
  });

  const box = table.closest(".table");
  const input = box.querySelector("input");
  if (!input) continue;
  const shown = box.querySelector("output");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    shown.value = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
  });
}

// On paper everything is open, and afterwards as it was.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((details) => (details.open = true));
});
addEventListener("afterprint", () => closed.forEach((details) => (details.open = false)));
