// ---- components ----------------------------------------------------------------------------
/* A component is a group of shapes; the button in it is its frame, whose accessible name says what
   the texts show and more. The texts themselves are hidden from screen readers. */
const LABEL_END = 96; // where a card's name ends
const tintLimit = .5; // text on the strongest tint keeps a contrast of 4.5
function tint(part, index, box) {
  const value = judged(index), most = G.largest[part.parent >= 0 ? 1 : 0] || 1;
  if (value === undefined) return [];
  const opacity = (tintLimit * Math.min(1, Math.pow(Math.abs(value) / most, .7))).toFixed(3);
  return [svg("rect", { ...box, class: "tint " + sign(value), "fill-opacity": opacity })];
}
function bar(index, y) {
  const part = numbersOf(index);
  const left = D.bar[0] + 12, room = D.bar[1] - 80, [low, high] = G.scale;
  const at = value => left + room * clamp((value - low) / (high - low || 1), 0, 1);
  const group = svg("g", { class: "bars" });
  group.append(svg("path", { class: "axis", d: `M${at(0)} ${y - 11}V${y + 11}` }));
  if (part.effect !== undefined) {
    const [a, b] = [at(0), at(part.effect)].sort((p, q) => p - q);
    group.append(svg("rect", { class: "bar " + sign(part.effect), x: a, y: y - 5, width: Math.max(b - a, 1), height: 10 }));
    const [from, to] = spread(part);
    if (to > from) group.append(svg("path", { class: "whisker", d: `M${at(from)} ${y}H${at(to)}M${at(from)} ${y - 3}v6M${at(to)} ${y - 3}v6` }));
  }
  if (part.score !== undefined) {
    const x = at(part.score);
    group.append(svg("path", { class: "tick", d: `M${x} ${y - 4.5}L${x + 4} ${y}L${x} ${y + 4.5}L${x - 4} ${y}Z` }));
  }
  group.append(svg("text", { class: "value", "aria-hidden": true, x: D.bar[0] + D.bar[1] - 12, y: y + 4 }, number(judged(index))));
  return group;
}
function spread(part) {
  if (part.effect_low !== undefined && part.effect_high !== undefined) return [part.effect_low, part.effect_high];
  return part.effect_sd === undefined ? [0, 0] : [part.effect - part.effect_sd, part.effect + part.effect_sd];
}
function drawComponent(part, index) {
  const cell = part.parent >= 0, end = !part.sublayer, radius = cell ? 4 : 9;
  const frame = { x: part.x, y: part.y, width: part.w, height: part.h, rx: radius };
  const group = svg("g", {
    class: "component" + (cell ? " cell" : end ? " end" : " row") + (cell && judged(index) < 0 ? " hurts" : ""),
  });
  const mid = part.y + part.h / 2;
  group.hit = svg("rect", { class: "box", ...frame, tabindex: -1, role: "button", "aria-pressed": "false" });
  group.append(group.hit);
  if (cell) {
    group.append(...tint(part, index, frame), svg("rect", { class: "hatch", ...frame }));
    if (part.w >= 15) group.append(svg("text", { x: part.x + part.w / 2, y: mid + 3.8, "aria-hidden": true }, String(part.head)));
  } else if (part.kind === "encoder") {
    const middle = { x: part.x + part.w / 2, "text-anchor": "middle" };
    group.append(svg("text", { ...middle, y: mid, class: "name", "aria-hidden": true }, "encoder"));
    group.append(svg("text", { ...middle, y: mid + 16, class: "quiet", "aria-hidden": true }, "the page"));
  } else {
    if (part.sublayer && !part.heads) {
      const unit = { x: D.units[0], y: part.y + 8, width: D.units[1] - 4, height: part.h - 16, rx: 5 };
      group.append(svg("rect", { class: "unit", ...unit }));
      if (part.kind === "M") group.append(svg("rect", { ...unit, fill: "url(#neurons)" }));
      group.append(...tint(part, index, unit));
    }
    group.append(svg("rect", { class: "plate", ...frame }), svg("rect", { class: "hatch", ...frame }));
    group.append(svg("rect", { class: "kept-mark", x: part.x, y: part.y + 6, width: 4, height: part.h - 12, rx: 2 }));
    group.append(svg("text", { class: "name", "aria-hidden": true, x: part.x + 13, y: mid - 1 }, part.name));
    group.append(svg("text", { class: "quiet", "aria-hidden": true, x: part.x + 13, y: mid + 12 }, part.words));
    if (part.sublayer) group.append(svg("text", { class: "quiet note", "aria-hidden": true, x: D.units[0] + 10, y: mid + 3.8 }));
    if (part.sublayer && judged(index) !== undefined) group.append(bar(index, mid));
  }
  // Which of two plans keeps it; a letter, because colour alone would not do.
  const mark = cell ? { x: part.x + part.w / 2, y: part.y - 1.5 } : { x: part.x + LABEL_END, y: part.y + 13 };
  if (part.sublayer) group.append(svg("text", { class: "mark", "aria-hidden": true, ...mark }));
  const point = on => { state.pointed = on ? index : -1; paint(); };
  group.addEventListener("pointerenter", event => { point(true); showTip(event, tipText(index)); });
  group.addEventListener("pointermove", event => showTip(event, tipText(index)));
  group.addEventListener("pointerleave", () => { point(false); tip.hidden = true; });
  group.hit.addEventListener("focus", () => point(true));
  group.hit.addEventListener("blur", () => point(false));
  group.addEventListener("click", () => select(state.selected === index ? -1 : index));
  return group;
}
let drawn = [];
function drawPicture() {
  picture.replaceChildren();
  picture.setAttribute("viewBox", `0 0 ${D.size[0]} ${D.size[1]}`);
  const hatch = svg("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("line", { class: "hatch-line", x1: 0, y1: 0, x2: 0, y2: 6 }));
  const neurons = svg("pattern", { id: "neurons", width: 5, height: 8, patternUnits: "userSpaceOnUse" },
    svg("line", { class: "neurons", x1: 2.5, y1: 0, x2: 2.5, y2: 8 }));
  picture.append(svg("defs", {}, hatch, neurons));
  for (const [, x, y, w, h] of D.layers) picture.append(svg("rect", { class: "layer", x, y, width: w, height: h, rx: 12 }));
  const rows = parts.filter(p => p.parent < 0 && p.kind !== "encoder"), middle = p => p.y + p.h / 2;
  const [low, high] = [Math.max(...rows.map(middle)), Math.min(...rows.map(middle))];
  picture.append(svg("path", { class: "stream", d: `M${D.stream} ${low}V${high}` }));
  for (const row of rows) {
    const y = middle(row), right = row.x + row.w;
    if (!row.sublayer) { picture.append(svg("path", { class: "stub", d: `M${right} ${y}H${D.stream}` })); continue; }
    picture.append(svg("path", { class: "stub", d: `M${right} ${y - 7}H${D.stream - 5}M${right} ${y + 9}H${D.stream}` }));
    picture.append(svg("circle", { class: "plus", cx: D.stream, cy: y - 7, r: 5 }));
    picture.append(svg("path", { class: "plus-sign", d: `M${D.stream - 3} ${y - 7}h6M${D.stream} ${y - 10}v6` }));
  }
  drawn = parts.map(drawComponent);
  const group = name => svg("g", { id: name });
  const [cards, edges, cells, trail] = [group("cards"), group("edges"), group("cells"), group("trail")];
  drawn.forEach((one, index) => (parts[index].parent < 0 ? cards : cells).append(one));
  picture.append(cards, edges, trail, cells);
  const heading = rows.find(p => p.kind === "logits");
  if (heading && parts.some(p => p.sublayer)) {
    const y = middle(heading) + 4;
    cards.append(svg("text", { class: "quiet", "aria-hidden": true, x: D.units[0] + 4, y }, parts.some(p => p.heads) ? "heads, neurons" : ""));
    cards.append(svg("text", { class: "quiet", "aria-hidden": true, x: D.bar[0] + 12, y }, isChange() ? "change of the effect" : "rise of the metric when removed"));
  }
  for (const layer of [edges, trail]) {
    layer.addEventListener("pointerover", event => event.target.edge && showTip(event, `${edgeWords(event.target.edge)}\n${number(event.target.edge[2])}`));
    layer.addEventListener("pointerout", () => { tip.hidden = true; });
  }
}
