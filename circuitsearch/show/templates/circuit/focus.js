// ---- what is pointed at, selected, planned -----------------------------------------------------
function paint() {
  const trail = new Set(state.trail.flatMap(edge => G.edges[edge].slice(0, 2))), linked = new Set(trail);
  const center = trail.size ? -1 : carrier(state.pointed >= 0 ? state.pointed : state.selected);
  picture.classList.toggle("focused", center >= 0 || trail.size > 0);
  for (const path of byId("edges").children) {
    const lit = path.edge[0] === center || path.edge[1] === center, cut = isCut(path.edge);
    path.classList.toggle("lit", lit);
    path.classList.toggle("cut", cut);
    if (lit && !cut) { linked.add(path.edge[0]); linked.add(path.edge[1]); }
  }
  drawTrail();
  drawn.forEach((one, index) => {
    one.classList.toggle("linked", linked.has(index));
    one.classList.toggle("selected", index === state.selected);
    one.hit.setAttribute("aria-pressed", String(index === state.selected));
  });
}
function summary(index) {
  const part = numbersOf(index), lines = [`${parts[index].name}, ${parts[index].words}`], of = isChange() ? "change of " : "";
  if (part.effect !== undefined) lines.push(`${of}effect ${number(part.effect)}`);
  if (part.score !== undefined) lines.push(`${of}score ${number(part.score)}`);
  if (statusWords(index)) lines.push(statusWords(index));
  return lines;
}
function tipText(index) {
  const owner = carrier(index), near = { in: 0, out: 0 };
  for (const path of byId("edges").children) {
    if (path.edge[1] === owner) near.in++;
    if (path.edge[0] === owner) near.out++;
  }
  const whose = owner === index ? "shown edges" : `shown edges of ${parts[owner].name}`;
  return [...summary(index), `${whose}: ${near.in} in, ${near.out} out`].join("\n");
}
function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${clamp(event.clientX + 14, 4, innerWidth - box.width - 4)}px`;
  tip.style.top = `${clamp(event.clientY + 16, 4, innerHeight - box.height - 4)}px`;
}
function select(index) {
  const before = state.selected;
  Object.assign(state, { selected: index, pinned: [], trail: [] });
  if (index >= 0) rove(index, false);
  for (const row of document.querySelectorAll("#components tbody tr")) row.classList.toggle("selected", Number(row.dataset.index) === index);
  paint();
  details();
  if (index >= 0) say(`Selected ${summary(index).join(", ")}`);
  else if (before >= 0) say(`${parts[before].name} closed`);
  remember();
}
const OVERLAYS = ["removed", "partly", "kept", "onlya", "onlyb", "differs"];
const MARKS = { onlya: "A", onlyb: "B", differs: "≠" };
function overlay() {
  const two = state.plan >= 0 && state.against >= 0, [first, second] = [D.plans[state.plan], D.plans[state.against]];
  picture.classList.toggle("planned", state.plan >= 0);
  byId("pair-legend").hidden = !two;
  byId("pair-a").textContent = two ? `A, kept by ${first.name} only` : "";
  byId("pair-b").textContent = two ? `B, kept by ${second.name} only` : "";
  drawn.forEach((one, index) => {
    const shown = overlayOf(index);
    OVERLAYS.forEach(word => one.classList.toggle(word, shown === word));
    const mark = one.querySelector(".mark"), note = one.querySelector(".note");
    if (mark) mark.textContent = MARKS[shown] || "";
    if (note) note.textContent = parts[index].heads || two ? "" : first?.notes[index] || "";
    one.hit.setAttribute("aria-label", summary(index).join(", "));
  });
  for (const cell of document.querySelectorAll("#components td.plan")) {
    cell.textContent = statusWords(Number(cell.parentElement.dataset.index)) || "–";
  }
  paint();
  details();
}
function choosePlans(plan, against) {
  Object.assign(state, { plan, against: plan >= 0 && against !== plan ? against : -1 });
  byId("plan").value = String(state.plan);
  byId("against").value = String(state.against);
  byId("against").disabled = state.plan < 0;
  for (const option of byId("against").options) option.disabled = option.value !== "-1" && Number(option.value) === state.plan;
  overlay();
}
function planSummary() {
  const count = word => parts.filter((part, index) => part.sublayer && part.parent < 0 && overlayOf(index) === word).length;
  if (state.plan < 0) return "No plan: the whole teacher";
  const name = D.plans[state.plan].name;
  if (state.against < 0) return `Plan ${name}: ${count("removed")} sub-layers removed, ${count("partly")} kept in part`;
  const other = D.plans[state.against].name;
  return `Plans ${name} and ${other}: ${count("onlya")} sub-layers only in ${name}, ${count("onlyb")} only in ${other}, ${count("differs")} kept differently`;
}
