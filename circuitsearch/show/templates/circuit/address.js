// ---- state in the address, so that a view can be sent as a link --------------------------------------
let waiting = 0, ready = false;
function remember() {
  if (!ready) return;
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const kept = new URLSearchParams();
    const keep = (key, value, usual) => { if (value !== usual) kept.set(key, value); };
    keep("graph", state.graph + 1, 1);
    keep("level", state.level, "all");
    keep("edges", state.shown, Math.min(G.first, levels[state.level].length));
    keep("plan", D.plans[state.plan]?.name, undefined);
    keep("against", D.plans[state.against]?.name, undefined);
    keep("select", parts[state.selected]?.name, undefined);
    keep("page", state.page + 1, 1);
    keep("read", state.read ? "yes" : "no", "no");
    keep("find", state.find, "");
    keep("view", state.tabular ? "table" : "picture", "picture");
    const text = kept.toString();
    if (text !== location.hash.slice(1)) history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
  }, 150); // a dragged slider would write hundreds of times
}
/* Reads the address; what names nothing on this page leaves the usual state. */
function recall() {
  const asked = new URLSearchParams(location.hash.slice(1)), named = (list, name) => list.findIndex(one => one.name === name);
  const graph = Number(asked.get("graph")) - 1, level = asked.get("level"), amount = asked.get("edges");
  const page = Number(asked.get("page")) - 1;
  ready = false;
  Object.assign(state, { page: D.pages[page] ? page : 0, read: asked.get("read") === "yes" });
  chooseGraph(D.graphs[graph] ? graph : 0);
  state.level = levels[level]?.length ? level : "all";
  byId("level").value = state.level;
  show(/^\d{1,6}$/.test(amount ?? "") ? Number(amount) : G.first);
  choosePlans(named(D.plans, asked.get("plan")), named(D.plans, asked.get("against")));
  byId("search").value = asked.get("find") ?? "";
  find(byId("search").value);
  showTables(asked.get("view") === "table");
  select(named(parts, asked.get("select")));
  ready = true;
}
