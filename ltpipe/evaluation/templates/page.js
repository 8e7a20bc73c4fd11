"use strict";
// Without this, tables stand in the order in which they were written.
for (const table of document.querySelectorAll("table.sort")) {
  const body = table.tBodies[0];
  const written = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const number = (cell) => parseFloat(cell.textContent.replace(",", "").replace("−", "-"));
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const values = new Map(written.map((row) => [row, number(row.cells[place])]));
      const words = written.every((row) => Number.isNaN(values.get(row)));
      const first = words ? "ascending" : "descending";
      const second = words ? "descending" : "ascending";
      const order = before === first ? second : before === second ? null : first;
      let rows = written;
      if (order !== null) {
        const sign = order === "ascending" ? 1 : -1;
        head.setAttribute("aria-sort", order);
        rows = [...written].sort((a, b) => {
          if (words) return sign * a.cells[place].textContent.localeCompare(b.cells[place].textContent);
          const [x, y] = [values.get(a), values.get(b)];
          // What is no number comes last either way.
          return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || 0;
        });
      }
      body.append(...rows);
    });
  });
  if (table.classList.contains("filter")) {
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "filter, such as few";
    field.setAttribute("aria-label", "show the rows that contain");
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      for (const row of written) {
        const cells = [...row.cells].slice(0, 3).map((cell) => cell.textContent.toLowerCase());
        row.hidden = !cells.some((text) => text.includes(wanted));
      }
    });
    table.closest(".scroll").before(field);
  }
}
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not(.long)")) part.open = true;
});
