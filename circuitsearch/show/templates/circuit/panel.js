// ---- side panel --------------------------------------------------------------------------------
const pair = entries => {
  const list = html("dl", { class: "pair" });
  for (const [key, value, style] of entries) list.append(html("dt", {}, key), html("dd", style ? { class: style } : {}, value));
  return list;
};
const headed = (title, box) => [html("h3", {}, title), box];
// From the panel or a table the reader goes on in the panel, whose content is new.
function openHere(index) {
  select(index);
  panel.querySelector("h2").focus();
}
function ranked(title, entries, top) {
  const box = html("div", { class: "list" });
  for (const [index, name, value] of entries) {
    const track = svg("svg", { class: "track", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: sign(value), x: 0, y: .5, width: Math.max(1, 100 * Math.abs(value) / (top || 1)), height: 7 }));
    const button = html("button", { type: "button" }, html("span", {}, name), track, html("span", { class: "amount" }, number(value)));
    button.addEventListener("click", () => openHere(index));
    box.append(button);
  }
  return entries.length ? headed(title, box) : [];
}
const metric = () => Object.fromEntries(D.graphs[0].about).metric || "the metric";

// ---- paths through a component ------------------------------------------------------------------
function pathWords(edges) {
  const list = edges.map(place => G.edges[place]);
  return [parts[list[0][0]].name, ...list.map(edge => parts[edge[1]].name + (edge[3] ? "." + edge[3] : ""))].join(" \u2192 ");
}
function trace(edges) {
  state.trail = edges;
  paint();
}
function pathList(owner) {
  const box = html("div", { class: "list paths" });
  for (const [share, ...edges] of G.through[owner]) {
    const button = html("button", { type: "button", "aria-pressed": "false" }, html("span", {}, pathWords(edges)),
      html("span", { class: "amount" }, `${trim(100 * share)} %`));
    button.addEventListener("pointerenter", () => trace(edges));
    button.addEventListener("focus", () => trace(edges));
    for (const leave of ["pointerleave", "blur"]) button.addEventListener(leave, () => trace(state.pinned));
    button.addEventListener("click", () => {
      state.pinned = state.pinned === edges ? [] : edges;
      for (const other of box.children) other.setAttribute("aria-pressed", String(other === button && state.pinned === edges));
      trace(state.pinned);
      say(state.pinned.length ? `Path ${pathWords(edges)} stays drawn` : "Path released");
    });
    box.append(button);
  }
  return box.childElementCount ? headed(`Strongest paths through ${parts[owner].name}, share of the score`, box) : [];
}

// ---- overview, and the details of one component ---------------------------------------------------
function planPart() {
  const [first, second] = [D.plans[state.plan], D.plans[state.against]];
  if (!first) return [html("h2", { tabindex: -1 }, "Overview"), html("p", { class: "what" }, "Point at a component for its edges, click it for its numbers and paths.")];
  if (!second) return [html("h2", { tabindex: -1 }, first.name), html("p", { class: "what" }, first.text)];
  const named = word => parts.map((part, index) => [part, index])
    // A head is named where its sub-layer does not say it already.
    .filter(([part, index]) => part.sublayer && overlayOf(index) === word && !(part.parent >= 0 && overlayOf(part.parent) === word))
    .map(([part]) => part.name).join(" ") || "none";
  const both = parts.filter((part, index) => part.sublayer && overlayOf(index) === "differs")
    .map(part => [part.name, statusWords(parts.indexOf(part))]);
  return [html("h2", { tabindex: -1 }, `${first.name} and ${second.name}`), html("p", { class: "what" }, `A: ${first.text}`), html("p", { class: "what" }, `B: ${second.text}`),
    ...headed("What differs", pair([["only in A", named("onlya")], ["only in B", named("onlyb")], ...both]))];
}
function overview() {
  const about = Object.fromEntries(G.about), by = isChange() ? "change" : "effect";
  const rows = parts.map((part, index) => [index, part.name, judged(index)]).filter(row => row[2] !== undefined);
  const best = heads => rows.filter(row => (parts[row[0]].parent >= 0) === heads)
    .sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 8);
  panel.replaceChildren(...planPart(),
    ...(isChange() ? [html("p", { class: "badge" }, `${G.name}; an edge that one graph lacks counts as zero there`)] : []),
    ...ranked(`Sub-layers by ${by}`, best(false), G.largest[0]), ...ranked(`Heads by ${by}`, best(true), G.largest[1]),
    ...(G.paths.length ? headed(`Paths to ${about["paths.target"] || "the target"}, by effectiveness`, pair(G.paths.map(([name, value]) => [name, value < 0 ? number(value) : trim(value)]))) : []),
    ...(G.about.length ? headed("About this graph", pair(G.about.filter(([key]) => !key.startsWith("paths.")).map(([key, value]) => [key.replace(/[._]/g, " "), String(value)]))) : []));
}
function facts(index) {
  const part = numbersOf(index), found = [], tone = value => "big is-" + sign(value), of = isChange() ? "change of " : "";
  const range = (low, high) => low !== undefined && high !== undefined && found.push(["interval", `${number(low)} to ${number(high)}`]);
  const sd = value => value !== undefined && found.push(["sd over examples", trim(value)]);
  if (part.effect !== undefined) found.push([`${of}effect (measured)`, number(part.effect), tone(part.effect)]);
  range(part.effect_low, part.effect_high);
  sd(part.effect_sd);
  if (part.score !== undefined) found.push([`${of}score (estimated)`, number(part.score), tone(part.score)]);
  range(part.score_low, part.score_high);
  sd(part.score_sd);
  if (part.examples) found.push(["examples", whole(part.examples)]);
  // Where two graphs are compared, what the other one or both say.
  D.graphs.slice(0, 2).forEach((graph, place) => {
    const there = graph.numbers[index];
    if (graph === G || D.graphs.length === 1 || (there.effect === undefined && there.score === undefined)) return;
    found.push([`effect in ${graph.name}`, number(there.effect)], [`score in ${graph.name}`, number(there.score)]);
  });
  return found.length ? headed(isChange() ? G.name : `Rise of ${String(metric()).replace(/_/g, " ")} when removed`, pair(found)) : [];
}
function details() {
  if (state.selected < 0) return overview();
  const index = state.selected, part = parts[index], close = html("button", { type: "button", class: "close" }, "close");
  close.addEventListener("click", () => { select(-1); drawn[index].hit.focus(); });
  const owner = carrier(index), whose = owner === index ? "" : parts[owner].name + " ";
  const near = touching[owner], top = Math.max(1e-12, ...[...near.in, ...near.out].map(edge => Math.abs(edge[2])));
  const row = (edge, end) => [edge[end], parts[edge[end]].name + (end === 0 && edge[3] ? ` \u2192 ${edge[3]}` : end === 1 && edge[3] ? "." + edge[3] : ""), edge[2]];
  panel.replaceChildren(
    html("div", { class: "head" }, html("div", {}, html("h2", { tabindex: -1 }, part.name), html("p", { class: "what" }, part.words)), close),
    ...(statusWords(index) ? [html("p", { class: "badge" }, state.against < 0 ? `${D.plans[state.plan].name}: ${statusWords(index)}` : statusWords(index))] : []),
    ...facts(index),
    ...(part.cost.length ? headed("Cost", pair(part.cost.map(([key, value]) => [key.replace("macs", "MACs"), whole(value)]))) : []),
    ...pathList(owner),
    ...lookPart(index),
    ...ranked(`${whose}${whose ? "r" : "R"}eads from (${near.in.length})`, near.in.slice(0, 8).map(edge => row(edge, 0)), top),
    ...ranked(`${whose}${whose ? "i" : "I"}s read by (${near.out.length})`, near.out.slice(0, 8).map(edge => row(edge, 1)), top));
  panel.scrollTop = 0;
}
