// ---- edges: where they run, and which are drawn --------------------------------------------------
function portX(part, other, reader) {
  if (part.parent >= 0) {
    const place = { q: -.25, k: 0, v: .25 }[reader] || 0;
    return part.x + part.w * (.5 + place);
  }
  return clamp(other.x + other.w / 2, D.units[0] + 6, D.units[0] + D.units[1] - 6);
}
function route(edge) {
  const [from, to] = [parts[edge[0]], parts[edge[1]]];
  if (from.kind === "encoder") {
    const x = from.x + from.w;
    if (to.parent < 0) {
      const y = to.y + to.h / 2 + ({ k: -6, v: 6 }[edge[3]] || 0);
      return `M${x} ${clamp(y, from.y + 4, from.y + from.h - 4)}L${to.x} ${y}`;
    }
    // Under the card's row of heads, then up into the head.
    const card = parts[to.parent], y = card.y + card.h + 5, end = portX(to, from, edge[3]);
    return `M${x} ${y}C${card.x} ${y} ${end - 60} ${y} ${end - 8} ${y}Q${end} ${y} ${end} ${to.y + to.h}`;
  }
  if (joins(edge) === "rows") {
    const y1 = from.y + from.h / 2 - 7, y2 = to.y + to.h / 2 + 9, x = D.stream + 7;
    const reach = 14 + (D.arcs - 34) * Math.pow(Math.min(1, (y1 - y2) / (D.size[1] - 60)), .62);
    const bend = x + reach * 4 / 3;
    return `M${x} ${y1}C${bend} ${y1} ${bend} ${y2} ${x} ${y2}`;
  }
  const x1 = portX(from, to, ""), x2 = portX(to, from, edge[3]);
  const y1 = from.y, y2 = to.y + to.h, bend = Math.max(10, (y1 - y2) * .42);
  return `M${x1} ${y1}C${x1} ${y1 - bend} ${x2} ${y2 + bend} ${x2} ${y2}`;
}
const edgeWords = edge =>
  `${parts[edge[0]].name} \u2192 ${parts[edge[1]].name}${edge[3] ? "." + edge[3] : ""}`;

function drawEdge(edge, extra = "") {
  const share = Math.min(1, Math.pow(Math.abs(edge[2]) / (G.strongest || 1), .6));
  const path = svg("path", {
    class: `edge ${sign(edge[2])}${extra}`, d: route(edge), "stroke-width": (.6 + 5.4 * share).toFixed(2),
    opacity: (.3 + .6 * share).toFixed(2),
  });
  path.edge = edge;
  return path;
}
function drawEdges() {
  const list = levels[state.level], amount = clamp(state.shown, 0, list.length), made = [];
  for (let i = amount - 1; i >= 0; i--) made.push(drawEdge(list[i])); // strongest last, so that it lies on top
  byId("edges").replaceChildren(...made);
  const least = amount ? trim(Math.abs(list[amount - 1][2])) : "–";
  const words = `${whole(amount)} of ${whole(list.length)}` + (amount ? `, |score| ≥ ${least}` : "");
  byId("shown").textContent = words + (G.omitted ? ` (${whole(G.omitted)} weaker left out)` : "");
  byId("strength").setAttribute("aria-valuetext", words);
  paint();
  edgeTable();
}
// Edges of the path that is pointed at lie above all others, whether or not the slider shows them.
function drawTrail() {
  byId("trail").replaceChildren(...state.trail.map(edge => drawEdge(G.edges[edge], " lit")));
}
