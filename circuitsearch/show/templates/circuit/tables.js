// ---- tables ------------------------------------------------------------------------------------
const componentTable = byId("components");
function edgeTable() {
  const box = byId("edge-table");
  if (!box.open) return;
  const body = html("tbody");
  for (const edge of levels[state.level].slice(0, state.shown)) {
    body.append(html("tr", {}, html("th", { scope: "row" }, parts[edge[0]].name), html("td", { class: "text" }, parts[edge[1]].name),
      html("td", { class: "text" }, edge[3] || "–"), html("td", {}, number(edge[2]))));
  }
  const head = html("tr", {}, ...["Writes", "Reads", "Reader", "Score"].map((name, i) => html("th", { scope: "col", ...(i < 3 ? { class: "text" } : {}) }, name)));
  box.querySelector(".scroll").replaceChildren(html("table", {}, html("caption", { class: "unseen" }, "Edges, strongest first"), html("thead", {}, head), body));
}
// The table comes with the first graph's numbers, for readers without a script.
function fillTable() {
  for (const cell of componentTable.querySelectorAll("td[data-key]")) {
    const key = cell.dataset.key, value = numbersOf(Number(cell.parentElement.dataset.index))[key];
    cell.dataset.value = value ?? "";
    cell.textContent = value === undefined ? "–" : key.endsWith("_sd") ? trim(value) : number(value);
  }
}
function sortable(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  heads.forEach((head, column) => {
    const button = html("button", { type: "button" }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending", numeric = !head.classList.contains("text") && column > 0;
      heads.forEach(one => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => numeric ? (value(row, column) === "" ? -Infinity : Number(value(row, column))) : value(row, column);
      const order = [...body.rows].sort((a, b) => { const [p, q] = [key(a), key(b)]; return (p < q ? -1 : p > q ? 1 : 0) * (down ? -1 : 1); });
      body.append(...order);
      say(`Sorted by ${button.textContent}, ${head.getAttribute("aria-sort")}`);
    });
  });
  for (const row of body.rows) {
    const index = Number(row.dataset.index), name = row.cells[0];
    name.replaceChildren(html("button", { type: "button" }, name.textContent));
    row.addEventListener("click", () => openHere(index));
  }
}
function showTables(on) {
  state.tabular = on;
  document.body.classList.toggle("tabular", on);
  byId("view").setAttribute("aria-pressed", String(on));
  if (on) byId("edge-table").open = true;
}

// ---- search ------------------------------------------------------------------------------------
const matches = () => {
  const asked = state.find.trim().toLowerCase();
  const fits = part => part.name.toLowerCase().includes(asked) || part.words.toLowerCase().includes(asked);
  const exact = parts.findIndex(part => part.name.toLowerCase() === asked);
  const found = asked ? parts.map((part, index) => index).filter(index => fits(parts[index])) : [];
  return exact < 0 ? found : [exact, ...found.filter(index => index !== exact)];
};
function find(text) {
  state.find = text;
  const found = matches(), asked = text.trim() !== "";
  drawn.forEach((one, index) => one.classList.toggle("found", found.includes(index)));
  for (const row of componentTable.tBodies[0].rows) row.hidden = asked && !found.includes(Number(row.dataset.index));
  const words = found.length === 1 ? "1 component" : `${found.length} components`;
  byId("matches").textContent = asked ? words : "";
}
function nextMatch() {
  const found = matches();
  if (found.length) select(found[(found.indexOf(state.selected) + 1) % found.length]);
}
