"""The circuit page: one HTML file that shows a circuit graph offline and can be mailed around.

Python reads the graph, fixes every coordinate and puts numbers, style and script into one file; the
script, the files of `templates/circuit/` joined, draws it. Three properties come before features:

* *Nothing is fetched.* The file has no external address, and its content security policy allows
  only the very style and script it was written with (by SHA-256), so a browser enforces that.
* *Foreign text stays text.* Names go through HTML escaping or, inside the data block, through JSON
  in which `<`, `>` and `&` are written as escapes; the script sets text, never markup.
* *The same graph gives the same bytes*: sorted, rounded to six digits, no date.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from circuitsearch.core.errors import ConfigError, integer_problems, raise_together
from circuitsearch.core.files import write_text
from circuitsearch.core.page_maps import PageMaps
from circuitsearch.show.circuit import Circuit, kind_words, read_circuit
from circuitsearch.show.graph_pair import united
from circuitsearch.show.page_data import page_data
from circuitsearch.show.text import DASH, count, filled, one_line, rounded, signed

__all__ = ["circuit_html", "write_circuit_html"]

_HEADLINE = ("teacher", "metric", "ablation", "method", "examples", "base_metric")
# The files of templates/circuit, in the order in which they are joined.
_SCRIPTS = (
    *("base", "edges", "picture", "focus", "panel", "pages"),
    *("tables", "save", "address", "keyboard", "start"),
)
_COLUMNS = {"score": "Score", "score_sd": "Sd", "effect": "Effect", "effect_sd": "Sd"}


def write_circuit_html(
    circuit: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    plans: Mapping[str, str] | None = None,
    title: str = "Circuit graph",
    edge_limit: int = 4000,
    other: Mapping[str, Any] | None = None,
    names: tuple[str, str] = ("first graph", "second graph"),
    pages: Sequence[PageMaps] = (),
) -> Path:
    """Write the page of a circuit graph to `path`, atomically, and return the path.

    Args:
        circuit: node-link JSON of the graph (`circuitsearch.show.circuit` documents the form).
        path: the HTML file.
        plans: plans that a reader can lay over the graph, name to plan text.
        title: heading of the page.
        edge_limit: most edges of a graph in the file; the strongest stay and the page says how
            many do not.
        other: a second graph in the same form, to compare with: the reader switches between the
            first, the second and the difference. With it the page holds up to three lists of edges.
        names: what the two graphs are called.
        pages: questions about page images and where heads look, to embed in the file. Whoever gets
            the file sees the pages.

    Raises:
        DataError: a graph is malformed, or a page does not fit it.
        ConfigError: the edge limit is no positive number, or the graphs have the same name.
        PlanError: a plan is malformed or names what the graph does not have; all faults together.
        StorageError: the file cannot be written.
    """
    page = circuit_html(
        circuit,
        plans=plans,
        title=title,
        edge_limit=edge_limit,
        other=other,
        names=names,
        pages=pages,
    )
    write_text(path, page)
    return Path(path)


def circuit_html(
    circuit: Mapping[str, Any],
    *,
    plans: Mapping[str, str] | None = None,
    title: str = "Circuit graph",
    edge_limit: int = 4000,
    other: Mapping[str, Any] | None = None,
    names: tuple[str, str] = ("first graph", "second graph"),
    pages: Sequence[PageMaps] = (),
) -> str:
    """Return the page as text; see `write_circuit_html`."""
    problems = list(integer_problems("edge_limit", edge_limit))
    if other is not None and one_line(names[0]) == one_line(names[1]):
        problems.append(f"names: both graphs are called {names[0]!r}; give two different names")
    raise_together(problems, ConfigError, "Circuit page")
    graphs = [read_circuit(one) for one in (circuit, other) if one is not None]
    data = page_data(
        graphs[0],
        plans or {},
        edge_limit,
        other=graphs[1] if other is not None else None,
        names=names,
        pages=pages,
    )
    style, script = _template("circuit.css"), _script()
    contents = {
        "title": escape(one_line(title)),
        "policy": _policy(style, script, images=bool(pages)),
        "style": style,
        "script": script,
        "facts": _facts(graphs[0]),
        "table": _table(united(graphs)),
        "data": _embedded_json(data),
    }
    return filled(_template("circuit.html"), contents)


def _template(name: str) -> str:
    """Return a file of the templates folder."""
    return (files("circuitsearch.show") / "templates" / name).read_text("utf-8")


def _script() -> str:
    """Return the page's script: one closure, so that the files share names with nobody else."""
    inside = "\n".join(_template(f"circuit/{name}.js") for name in _SCRIPTS)
    return f'"use strict";\n(() => {{\n{inside}}})();\n'


def _policy(style: str, script: str, *, images: bool) -> str:
    """Return the content security policy: this style, this script, on request embedded images."""

    def source(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest())
        return f"'sha256-{digest.decode('ascii')}'"

    return (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; "
        f"{'img-src data:; ' if images else ''}base-uri 'none'; form-action 'none'"
    )


def _embedded_json(data: Any) -> str:
    """Return JSON that can stand inside a script element: no tag can end or open there."""
    text = json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _facts(graph: Circuit) -> str:
    """Return the line under the heading: what the numbers are about."""
    about = dict(graph.about)
    return "".join(
        f"<li>{escape(key.replace('_', ' '))} <b>{_value(about[key])}</b></li>"
        for key in _HEADLINE
        if key in about
    )


def _value(value: str | float | int) -> str:
    """Return one fact as escaped text."""
    return escape(value if isinstance(value, str) else str(rounded(value)))


def _table(graph: Circuit) -> str:
    """Return the table of all components: the picture's numbers for readers who do not see it."""
    costs = list(dict.fromkeys(name for part in graph.components for name, _ in part.cost))
    texts = "".join(f'<th scope="col" class="text">{w}</th>' for w in ("Component", "Kind", "Plan"))
    numbers = [*_COLUMNS.values(), *(_cost_title(name) for name in costs)]
    head = texts + "".join(f'<th scope="col">{escape(words)}</th>' for words in numbers)
    rows = []
    for place, part in enumerate(graph.components):
        kind = escape(kind_words(part))
        cells = [f'<td class="text">{kind}</td><td class="text plan">{DASH}</td>']
        for key in _COLUMNS:
            value = part.numbers.get(key)
            cells.append(_cell(value, _plain if key.endswith("_sd") else signed, key))
        spent = dict(part.cost)
        cells += [_cell(spent.get(key), count) for key in costs]
        name = f'<th scope="row">{escape(part.name)}</th>'
        rows.append(f'<tr data-index="{place}">{name}{"".join(cells)}</tr>')
    body = "\n".join(rows)
    return (
        '<table id="components"><caption class="unseen">Components, in order of execution'
        f"</caption><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    )


def _plain(number: float) -> str:
    """Write a number that has no sign to speak of."""
    return f"{number:.3g}"


def _cost_title(name: str) -> str:
    """Return the heading of a cost: "macs (paper)" -> "MACs (paper)"."""
    return name.replace("macs", "MACs").replace("parameters", "Parameters")


def _cell(value: Any, show: Callable[[Any], str], key: str = "") -> str:
    """Return one numeric table cell; the raw number rides along for sorting.

    Args:
        value: the number, None where it is unknown.
        show: writes it.
        key: name of the number in the page's data, for cells that change with the graph.
    """
    named = f' data-key="{key}"' if key else ""
    if value is None:
        return f'<td{named} data-value="">{DASH}</td>'
    return f'<td{named} data-value="{rounded(value)}">{escape(show(value))}</td>'
