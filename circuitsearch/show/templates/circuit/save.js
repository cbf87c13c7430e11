// ---- files: CSV tables and the picture ------------------------------------------------------------
function save(name, kind, text) {
  const address = URL.createObjectURL(new Blob([text], { type: kind }));
  html("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  say(`Saved ${name}`);
}
/* One CSV cell (RFC 4180). Text that a spreadsheet would run as a formula gets an apostrophe. */
function cell(value) {
  const text = typeof value === "string" && /^[=+\-@\t]/.test(value) ? "'" + value : String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
const csv = rows => rows.map(row => row.map(cell).join(",") + "\r\n").join("");
const NUMBERS = ["score", "score_sd", "score_low", "score_high", "effect", "effect_sd", "effect_low", "effect_high", "examples"];
function componentsCsv() {
  const costs = [...new Set(parts.flatMap(part => part.cost.map(([name]) => name)))];
  const rows = parts.map((part, index) => {
    const spent = Object.fromEntries(part.cost);
    return [part.name, part.words, statusWords(index), ...NUMBERS.map(key => numbersOf(index)[key]), ...costs.map(key => spent[key])];
  });
  return csv([["component", "kind", "plan", ...NUMBERS, ...costs], ...rows]);
}
function edgesCsv() {
  const rows = levels[state.level].slice(0, state.shown).map(edge => [parts[edge[0]].name, parts[edge[1]].name, edge[3], edge[2]]);
  return csv([["writes", "reads", "reader", "score"], ...rows]);
}

const DRAWN = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "font-size", "font-weight", "font-family", "text-anchor"];
/* The picture as a file of its own: what the style sheet says is written onto every element. */
function pictureSvg() {
  const copy = picture.cloneNode(true), [from, to] = [picture.querySelectorAll("*"), copy.querySelectorAll("*")];
  from.forEach((element, index) => {
    const style = getComputedStyle(element), made = to[index];
    for (const key of DRAWN) made.setAttribute(key, style.getPropertyValue(key));
    for (const key of ["class", "tabindex", "role", "aria-pressed", "aria-label", "aria-hidden"]) made.removeAttribute(key);
  });
  const ground = getComputedStyle(document.querySelector(".picture")).backgroundColor;
  copy.querySelector("defs").after(svg("rect", { width: D.size[0], height: D.size[1], fill: ground }));
  for (const key of ["id", "class", "aria-describedby"]) copy.removeAttribute(key);
  copy.setAttribute("role", "img");
  copy.setAttribute("width", D.size[0]);
  copy.setAttribute("height", D.size[1]);
  return new XMLSerializer().serializeToString(copy);
}
