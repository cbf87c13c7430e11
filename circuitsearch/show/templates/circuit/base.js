/* Draws the circuit graph from the JSON beside it. `viewer.py` joins the files of this folder into
   one script, in the order that it lists them. All text goes through textContent: names in a graph
   are somebody else's words. Coordinates come from Python and are the same for every graph of one
   teacher. An edge is [source, target, score, reader]; edges are sorted, strongest first. */
const D = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const parts = D.components, picture = byId("picture"), panel = byId("panel"), tip = byId("tip");
const state = {
  graph: 0, level: "all", shown: 0, plan: -1, against: -1, selected: -1, pointed: -1,
  pinned: [], trail: [], find: "", tabular: false, page: 0, read: false,
};

// ---- small helpers ---------------------------------------------------------------------------
const make = (space, name, facts = {}, ...inside) => {
  const made = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(facts)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
};
const svg = (name, facts, ...inside) => make(picture.namespaceURI, name, facts, ...inside);
const html = (name, facts, ...inside) => make(null, name, facts, ...inside);
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const trim = x => x === 0 ? "0" : x >= 1e5 || x < 1e-4 ? x.toExponential(2) : String(Number(x.toPrecision(3)));
const number = x => x === undefined ? "–" : (x > 0 ? "+" : x < 0 ? "\u2212" : "") + trim(Math.abs(x));
const whole = x => x.toLocaleString("en");
const sign = x => x < 0 ? "negative" : "positive";
const say = words => { byId("said").textContent = words; };
const costTitle = name => name.replace("macs", "MACs").replace("parameters", "Parameters");

// ---- the graph that is shown: the first, the second, or their difference -----------------------
let G, levels, touching;
const isChange = () => state.graph === 2;
const numbersOf = index => G.numbers[index];
const judged = index => numbersOf(index).effect ?? numbersOf(index).score;
const joins = edge => parts[edge[0]].parent < 0 && parts[edge[1]].parent < 0 ? "rows" : "heads";
function takeGraph(index) {
  state.graph = index;
  G = D.graphs[index];
  levels = { all: G.edges, rows: [], heads: [] };
  touching = parts.map(() => ({ in: [], out: [] }));
  for (const edge of G.edges) {
    levels[joins(edge)].push(edge);
    touching[edge[0]].out.push(edge);
    touching[edge[1]].in.push(edge);
  }
}
// A head without edges of its own stands on those of its sub-layer.
const carrier = index => index >= 0 && parts[index].parent >= 0
  && !touching[index].in.length && !touching[index].out.length ? parts[index].parent : index;

// ---- plans -----------------------------------------------------------------------------------
const REMOVED = "0";
const planState = (plan, index) => D.plans[plan]?.states[index];
const planWords = (plan, index) => D.plans[plan] === undefined ? ""
  : D.plans[plan].notes[index] || { "0": "removed", "1": "kept in part", "2": "kept" }[planState(plan, index)];
/* What the overlay shows: removed, partly or kept by the plan; with two plans also onlya, onlyb, and
   differs for a component that both keep, but not equally. */
function overlayOf(index) {
  const [a, b] = [planState(state.plan, index), planState(state.against, index)];
  if (a === undefined) return "";
  const alone = { "0": "removed", "1": "partly", "2": "kept" }[a];
  if (b === undefined || (a === REMOVED && b === REMOVED)) return alone;
  if (b === REMOVED) return "onlya";
  if (a === REMOVED) return "onlyb";
  return planWords(state.plan, index) === planWords(state.against, index) ? alone : "differs";
}
function statusWords(index) {
  const [a, b] = [planWords(state.plan, index), planWords(state.against, index)];
  return a && b && a !== b ? `${D.plans[state.plan].name}: ${a}; ${D.plans[state.against].name}: ${b}` : a;
}
const isCut = edge => overlayOf(edge[0]) === "removed" || overlayOf(edge[1]) === "removed";
