// ---- keyboard: one tab stop, arrows move ---------------------------------------------------
const lines = []; // rows bottom to top, each [component, its heads...]
parts.forEach((part, index) => part.parent < 0 ? lines.push([index]) : lines.find(line => line[0] === part.parent).push(index));
function rove(index, focus = true) {
  drawn.forEach((one, i) => one.hit.setAttribute("tabindex", i === index ? 0 : -1));
  if (focus) drawn[index].hit.focus();
}
function move(event) {
  const index = drawn.findIndex(one => one.hit === document.activeElement);
  if (index < 0) return;
  const row = lines.findIndex(line => line.includes(index)), column = lines[row].indexOf(index);
  const across = (line, place) => line[clamp(place, 0, line.length - 1)];
  const moves = {
    ArrowUp: () => across(lines[Math.min(row + 1, lines.length - 1)], column),
    ArrowDown: () => across(lines[Math.max(row - 1, 0)], column),
    ArrowRight: () => across(lines[row], column + 1), ArrowLeft: () => across(lines[row], column - 1),
    Home: () => lines[0][0], End: () => lines[lines.length - 1][0],
  };
  if (moves[event.key]) rove(moves[event.key]());
  else if (event.key === "Enter" || event.key === " ") select(index);
  else return;
  event.preventDefault();
}
function closeDetails() {
  const inside = panel.contains(document.activeElement), before = state.selected;
  if (!tip.hidden) tip.hidden = true;
  select(-1);
  if (inside && before >= 0) drawn[before].hit.focus();
}
