from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsearch.show.report_markup import Markup, details, element, joined, preformatted, table
from circuitsearch.show.text import one_line


class Reader(HTMLParser):
    """What a reader of HTML sees: elements with attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", []))


@given(st.text(), st.text())
def test_any_text_stays_text_in_content_and_in_attributes(content: str, attribute: str) -> None:
    made = Reader(element("p", content, title=attribute, kind="note"))
    assert made.tags == [("p", [("title", one_line(attribute)), ("class", "note")])]
    assert made.text == one_line(content)


@given(st.text())
def test_preformatted_text_keeps_its_lines_and_stays_text(text: str) -> None:
    made = Reader(preformatted(text))
    assert [tag for tag, _ in made.tags] == ["pre"]
    lines = made.text.removeprefix("\n").split("\n")
    assert len(lines) == text.count("\n") + 1
    shown = text.expandtabs()
    assert all(
        a == b or (not b.isprintable() and a == "\ufffd")
        for a, b in zip("\n".join(lines), shown, strict=True)
    )


def test_markup_is_kept_and_text_beside_it_is_not() -> None:
    inner = element("b", "1 < 2")
    assert inner == "<b>1 &lt; 2</b>"
    assert isinstance(inner, Markup)
    assert element("p", inner, "<i>") == "<p><b>1 &lt; 2</b>&lt;i&gt;</p>"
    assert joined(["<", inner], "&") == "&lt;&amp;<b>1 &lt; 2</b>"


def test_an_attribute_of_none_is_left_out_and_void_elements_have_no_end() -> None:
    assert element("img", alt='"', src=None) == '<img alt="&quot;">'


@pytest.mark.parametrize("name", ["p onclick=x", "P", "", "a/b"])
def test_a_tag_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        element(name)


def test_a_table_names_columns_and_rows_and_may_be_folded() -> None:
    made = table("Caption", ["Name", "N"], [["a", "1"], ["<b>", "2"]], numbers=[1])
    read = Reader(details("More", made))
    assert [tag for tag, _ in read.tags][:5] == ["details", "summary", "div", "table", "caption"]
    heads = [dict(attrs).get("scope") for tag, attrs in read.tags if tag == "th"]
    assert heads == ["col", "col", "row", "row"]
    assert sum(tag == "td" for tag, _ in read.tags) == 2
    assert "<b>2" in read.text
