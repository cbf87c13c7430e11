"""The frame of a page without script: head, policy, style, contents and sections.

`templates/report.html` and `report.css` make every such page look and behave the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files

from circuitsearch.show.report_markup import Markup, element, joined
from circuitsearch.show.text import filled, one_line

__all__ = ["framed"]


def framed(
    title: str,
    lead: str,
    sections: Mapping[str, tuple[str, Markup]],
    *,
    kind: str,
    skip: str,
    made: str,
) -> str:
    """Return a page as the text of an HTML file.

    Args:
        title: its heading; foreign text is escaped, as in the lead and in headings.
        lead: the result in a sentence or two.
        sections: heading and content by identifier, one or more, in order.
        kind: what the page is.
        skip: words of the link that leads behind the contents, to the first section.
        made: what it is made from.
    """
    template, style = (
        (files("circuitsearch.show") / "templates" / f"report.{suffix}").read_text("utf-8")
        for suffix in ("html", "css")
    )
    body = joined(
        element(
            "section",
            element("h2", heading, id=f"{name}-heading"),
            content,
            id=name,
            aria_labelledby=f"{name}-heading",
        )
        for name, (heading, content) in sections.items()
    )
    links = (
        element("li", element("a", heading, href=f"#{name}"))
        for name, (heading, _) in sections.items()
    )
    contents = {
        "title": escape(one_line(title)),
        "style": style,
        "first": next(iter(sections)),
        "skip": escape(skip),
        "kind": escape(kind),
        "lead": element("p", lead, kind="lead"),
        "contents": element("ul", *links),
        "body": body.replace("</section>", "</section>\n"),
        "made": escape(made),
    }
    return filled(template, contents)
