// ---- where a cross-attention looks on a page ------------------------------------------------------
const confident = .25; // least probability of a reading that is written onto its patch
/* Weights over the patches of the chosen page; of a whole sub-layer, the mean of its heads. */
function weightsOf(index, page) {
  const heads = parts.filter((part, place) => place === index || part.parent === index).map(part => page.maps[part.name]).filter(Boolean);
  const weights = new Float64Array(page.grid[0] * page.grid[1]);
  for (const [largest, steps] of heads) {
    const bytes = atob(steps);
    for (let i = 0; i < weights.length; i++) weights[i] += bytes.charCodeAt(i) / 255 * largest / heads.length;
  }
  return heads.length ? weights : null;
}
const readingsOf = (index, page) => page.readings[parts[parts[index].parent >= 0 ? parts[index].parent : index].name];
function patchWords(page, weights, readings, place) {
  const [, columns] = page.grid, said = readings && readings[place][1] >= confident ? `, reads “${readings[place][0]}”` : "";
  return `row ${Math.floor(place / columns) + 1}, column ${place % columns + 1}: ${trim(100 * weights[place])} %${said}`;
}
function heatMap(index, page, weights, readings) {
  const [rows, columns] = page.grid, [width, height] = page.size, [w, h] = [width / columns, height / rows];
  const most = Math.max(...weights) || 1;
  const map = svg("svg", { class: "heat", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Attention of ${parts[index].name} over the page` },
    svg("image", { href: D.pictures[page.picture], width, height, preserveAspectRatio: "none" }));
  weights.forEach((weight, place) => {
    const [x, y] = [place % columns * w, Math.floor(place / columns) * h];
    const patch = svg("rect", { class: "patch", x, y, width: w, height: h, "fill-opacity": (.7 * Math.sqrt(weight / most)).toFixed(3) });
    patch.addEventListener("pointermove", event => showTip(event, patchWords(page, weights, readings, place)));
    map.append(patch);
    if (!state.read || !readings || readings[place][1] < confident) return;
    const words = readings[place][0], text = svg("text", { class: "reading", x: x + w / 2, y: y + h * .7 }, words);
    text.style.fontSize = `${Math.min(h * .6, w / Math.max(1, words.length))}px`; // it fits its patch
    map.append(text);
  });
  map.addEventListener("pointerleave", () => { tip.hidden = true; });
  return map;
}
function lookPart(index) {
  const page = D.pages[state.page], weights = page && parts[index].kind === "C" ? weightsOf(index, page) : null;
  if (!weights) return [];
  const readings = readingsOf(index, page), again = id => { details(); byId(id).focus(); remember(); };
  const choice = html("select", { id: "question" }, ...D.pages.map((one, place) => html("option", { value: place }, one.question)));
  choice.value = String(state.page);
  choice.addEventListener("change", () => { state.page = Number(choice.value); again("question"); });
  const tick = html("input", { type: "checkbox", id: "read" });
  tick.checked = state.read;
  tick.addEventListener("change", () => { state.read = tick.checked; again("read"); });
  const first = [...weights.keys()].sort((a, b) => weights[b] - weights[a] || a - b).slice(0, 5);
  return [html("h3", {}, `Where ${parts[index].name} looks, ${page.position}`),
    html("p", { class: "control wrap" }, html("label", { for: "question" }, "Question"), choice),
    ...(readings ? [html("p", { class: "control" }, tick, html("label", { for: "read" }, "Transcription lens on the patches"))] : []),
    heatMap(index, page, weights, readings),
    html("ol", { class: "looked", "aria-label": "Patches with the largest weights" }, ...first.map(place => html("li", {}, patchWords(page, weights, readings, place))))];
}
