// ---- controls ------------------------------------------------------------------------------------
// The square gives fine steps where few edges are shown.
const slider = byId("strength");
const amountAt = place => Math.round(levels[state.level].length * Math.pow(place / 1000, 2));
function show(amount) {
  state.shown = Math.min(amount, levels[state.level].length);
  slider.value = String(Math.round(1000 * Math.sqrt(state.shown / (levels[state.level].length || 1))));
  drawEdges();
}
function chooseGraph(index) {
  takeGraph(index);
  byId("graph").value = String(index);
  byId("level-control").hidden = !(levels.rows.length && levels.heads.length);
  if (!levels[state.level].length) { state.level = "all"; byId("level").value = "all"; }
  Object.assign(state, { pinned: [], trail: [] });
  drawPicture();
  show(G.first);
  fillTable();
  overlay();
  find(state.find);
  rove(state.selected >= 0 ? state.selected : Math.max(0, parts.findIndex(part => part.sublayer)), false);
}
const on = (id, event, act) => byId(id).addEventListener(event, () => { act(byId(id)); remember(); });
on("strength", "input", () => { state.shown = amountAt(Number(slider.value)); drawEdges(); });
on("level", "change", box => { state.level = box.value; show(G.first); });
on("graph", "change", box => { chooseGraph(Number(box.value)); say(`Graph: ${G.name}`); });
on("plan", "change", box => { choosePlans(Number(box.value), state.against); say(planSummary()); });
on("against", "change", box => { choosePlans(state.plan, Number(box.value)); say(planSummary()); });
on("search", "input", box => find(box.value));
on("view", "click", () => { showTables(!state.tabular); say(state.tabular ? "Tables" : "Picture and tables"); });
on("edge-table", "toggle", edgeTable);
byId("search").addEventListener("keydown", event => { if (event.key === "Enter") { nextMatch(); event.preventDefault(); } });
byId("save-picture").addEventListener("click", () => save("circuit.svg", "image/svg+xml", pictureSvg()));
byId("save-components").addEventListener("click", () => save("components.csv", "text/csv", componentsCsv()));
byId("save-edges").addEventListener("click", () => save("edges.csv", "text/csv", edgesCsv()));
picture.addEventListener("keydown", move);
document.addEventListener("keydown", event => { if (event.key === "Escape") closeDetails(); });
addEventListener("hashchange", recall);

// ---- start ---------------------------------------------------------------------------------------
D.graphs.forEach((graph, index) => byId("graph").append(html("option", { value: index }, graph.name)));
byId("graph-control").hidden = D.graphs.length < 2;
D.plans.forEach((plan, index) => {
  byId("plan").append(html("option", { value: index }, plan.name));
  byId("against").append(html("option", { value: index }, plan.name));
});
byId("against-control").hidden = D.plans.length < 2;
sortable(componentTable);
recall();
