"""HTML by construction: what is not markup already is escaped when it is put into an element.

`Markup` is text that may stand in a page as it is; only the functions here (and figures, whose text
is drawn as outlines) make it. Everything else, be it a name, a question or an answer, is one line
of printable characters and then escaped, in content as in attributes, so that nothing foreign
becomes a tag, an attribute or a second line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from circuitsearch.show.text import one_line

__all__ = ["Markup", "details", "element", "joined", "preformatted", "table"]

_VOID = frozenset(("br", "img", "meta", "col"))
_NAME = re.compile(r"[a-z][a-z0-9-]*")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """Join texts and markup into markup; texts, `between` included, are escaped."""
    return Markup(_content(between).join(_content(part) for part in parts))


def element(tag: str, *content: str, **attributes: str | None) -> Markup:
    """Return an element.

    Args:
        tag: its name, ours and never foreign.
        *content: what stands in it; text is escaped.
        **attributes: its attributes, escaped; `kind` is the class, `_` in names becomes `-`. None
            leaves one out.

    Raises:
        ValueError: a tag or an attribute has no proper name, which is a fault in this package.
    """
    names = {
        {"kind": "class"}.get(name, name.replace("_", "-")): value
        for name, value in attributes.items()
        if value is not None
    }
    for name in (tag, *names):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an element or attribute")
    told = "".join(f' {name}="{escape(one_line(value))}"' for name, value in names.items())
    if tag in _VOID:
        return Markup(f"<{tag}{told}>")
    return Markup(f"<{tag}{told}>{joined(content)}</{tag}>")


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    lead: int = 0,
) -> Markup:
    """Return a table in a region of its own that scrolls sideways where the page is narrow.

    Args:
        caption: what it shows.
        head: headings of the columns.
        rows: cells, as many as headings.
        numbers: columns of numbers, aligned to the right.
        lead: the column that names a row.
    """
    right = frozenset(numbers)
    kinds = ["number" if place in right else None for place in range(len(head))]
    first = joined(
        element("th", name, scope="col", kind=kind) for name, kind in zip(head, kinds, strict=True)
    )
    lines = [
        joined(
            element("th", cell, scope="row", kind=kind)
            if place == lead
            else element("td", cell, kind=kind)
            for place, (cell, kind) in enumerate(zip(row, kinds, strict=True))
        )
        for row in rows
    ]
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", first)),
        Markup("\n"),
        element("tbody", *(Markup(f"{element('tr', line)}\n") for line in lines)),
    )
    return element(
        "div", made, kind="scroll", role="region", aria_label=f"Table: {caption}", tabindex="0"
    )


def details(summary: str, *content: str) -> Markup:
    """Return content that is folded away until it is asked for; it needs no script."""
    return element("details", element("summary", summary), *content)


def preformatted(text: str) -> Markup:
    """Return text whose lines and spaces are kept, such as a configuration."""
    lines = (
        "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
        for line in text.expandtabs().split("\n")
    )
    # A line break behind <pre> is dropped by readers of HTML, so that the first line may follow it.
    code = Markup("\n" + "\n".join(escape(line) for line in lines))
    return element("pre", code, tabindex="0")


def _content(part: str) -> Markup:
    return part if isinstance(part, Markup) else Markup(escape(one_line(part)))
