// Sorting and counting; without it the table can still be read and filtered.
const table = document.getElementById("problems"), body = table.tBodies[0], count = document.getElementById("count");
const total = body.rows.length;

function showCount() {
  const visible = [...body.rows].filter((row) => row.offsetParent !== null).length;
  count.textContent = visible === total ? `${total} problems` : `${visible} of ${total} problems`;
}

function sortBy(column, largestFirst) {
  const key = (row) => {
    const value = row.cells[column].dataset.value;
    return value === "" ? -Infinity : Number(value);
  };
  const sign = largestFirst ? -1 : 1;
  body.append(...[...body.rows].sort((a, b) => sign * (key(a) - key(b)) || 0));
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", largestFirst ? "descending" : "ascending");
}

for (const head of [...table.tHead.rows[0].cells].slice(0, -1)) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const first = head.getAttribute("aria-sort");
    const largestFirst = first ? first === "ascending" : head.cellIndex > 0;
    sortBy(head.cellIndex, largestFirst);
  });
}
document.querySelector(".filters")?.addEventListener("change", showCount);
