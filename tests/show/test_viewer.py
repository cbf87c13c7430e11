from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.show.viewer import circuit_html, write_circuit_html
from tests.show.circuits import circuit
from tests.show.test_page_maps import PAGE

PLANS = {"MINT31": "M0 C2 S3 C3", "heads": "S3[0-2,5] C3[4,7] M1:512"}
EVIL = "</script><img src=x onerror=alert(1)>{{data}}<!--\u2028&amp;"


class Page(HTMLParser):
    """Collects start tags with attributes, and the text of script, style and title elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, list[str]] = {"script": [], "style": [], "title": [], "h1": []}
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.blocks:
            self.inside = tag
            self.blocks[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.blocks[self.inside][-1] += data


SCRIPTS = files("circuitsearch.show") / "templates" / "circuit"


def data_of(text: str) -> Any:
    return json.loads(Page(text).blocks["script"][0])


def test_the_same_graph_in_another_order_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_circuit_html(circuit(head_edges=100), tmp_path / "a.html", plans=PLANS)
    data = circuit(head_edges=100)
    random.Random(1).shuffle(data["nodes"])
    random.Random(2).shuffle(data["edges"])
    data["graph"] = dict(reversed(data["graph"].items()))
    second = write_circuit_html(data, tmp_path / "b.html", plans=PLANS)
    assert first.read_bytes() == second.read_bytes()


def test_digits_beyond_the_sixth_do_not_show() -> None:
    data = circuit()
    for entry in (*data["nodes"], *data["edges"]):
        if "score" in entry:
            entry["score"] = float(f"{entry['score']:.6g}")
    text = circuit_html(data)
    for entry in (*data["nodes"], *data["edges"]):
        if "score" in entry:
            entry["score"] *= 1 + 1e-12  # the last bits of another machine's sum
    assert circuit_html(data) == text


@pytest.mark.parametrize(("heads", "head_edges"), [(8, 0), (8, 900), (16, 0)])
def test_the_page_is_small(heads: int, head_edges: int) -> None:
    text = circuit_html(circuit(heads=heads, head_edges=head_edges), plans=PLANS)
    assert len(text.encode()) < 200_000


def test_a_graph_of_all_heads_stays_below_a_megabyte() -> None:
    text = circuit_html(circuit(heads=16, head_edges=7000))
    assert len(text.encode()) < 1_000_000
    assert data_of(text)["graphs"][0]["omitted"] > 3000


def test_132_components_and_3400_edges_stay_below_a_megabyte_even_when_compared() -> None:
    data = circuit(heads=15, head_edges=3250)
    plain = circuit_html(data, plans=PLANS)
    parts = data_of(plain)["components"]
    assert len(parts) == 135  # with the three ends
    assert len(data_of(plain)["graphs"][0]["edges"]) == 3405
    assert len(plain.encode()) < 300_000
    other = circuit(heads=15, head_edges=3250, seed=1)
    assert len(circuit_html(data, plans=PLANS, other=other).encode()) < 1_000_000


def test_every_script_file_is_in_the_page() -> None:
    script = Page(circuit_html(circuit())).blocks["script"][1]
    sources = [path.read_text("utf-8") for path in SCRIPTS.iterdir()]
    assert all(source in script for source in sources)
    assert sum(map(len, sources)) + 100 > len(script)  # and nothing twice


def test_nothing_external_is_named() -> None:
    text = circuit_html(circuit(), plans=PLANS)
    assert not re.search(r"https?:", text.replace("http://www.w3.org/2000/svg", ""))
    assert not re.search(r"url\((?!#)|@import|\bfetch\(|XMLHttpRequest|import\(|//cdn", text)
    page = Page(text)
    assert not {"link", "iframe", "object", "embed", "img", "base"} & {tag for tag, _ in page.tags}
    assert not any({"src", "href"} & set(attributes) for _, attributes in page.tags)


def test_the_policy_allows_this_style_and_this_script_only() -> None:
    page = Page(circuit_html(circuit()))
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for name, block in (
        ("style-src", page.blocks["style"][0]),
        ("script-src", page.blocks["script"][1]),
    ):
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    # Inline handlers and style attributes would be refused by this policy.
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag


def test_images_are_allowed_only_where_pages_are_given() -> None:
    for pages, allowed in (([], False), ([PAGE], True)):
        text = circuit_html(circuit(), pages=pages)
        policy = next(a["content"] for t, a in Page(text).tags if a.get("http-equiv")) or ""
        assert ("img-src data:;" in policy) is allowed
        assert ("data:image" in text) is allowed


def test_the_policy_comes_before_anything_that_it_governs() -> None:
    names = [tag for tag, attributes in Page(circuit_html(circuit())).tags]
    assert names.index("meta") < names.index("style") < names.index("script")


def test_foreign_text_stays_text() -> None:
    data = circuit()
    data["graph"]["recipe"].update(teacher=EVIL, metric=EVIL)
    data["graph"][EVIL] = EVIL
    data["graph"]["paths"]["best"][0]["through"] = [EVIL]
    data["edges"][0]["port"] = EVIL
    data["nodes"][3]["cost"] = {EVIL: {"parameters": 1}}
    names = (EVIL, f"{EVIL} 2")
    page_maps = replace(PAGE, question=EVIL, position=EVIL, readings={"C3": [(EVIL, 0.5)] * 6})
    text = circuit_html(
        data, plans={EVIL: "C3"}, title=EVIL, other=data, names=names, pages=[page_maps]
    )
    plain = Page(circuit_html(circuit(), plans={"p": "C3"}, title="t"))
    page = Page(text)
    assert "<img" not in text
    assert page.blocks["title"] == page.blocks["h1"]
    assert page.blocks["title"][0].startswith("</script><img src=x")
    assert page.blocks["script"][1] == plain.blocks["script"][1]
    read = data_of(text)
    assert read["plans"][0]["name"].startswith("</script>")
    assert read["pages"][0]["question"].startswith("</script>")
    # Nothing but the rows of the extra cost column was added.
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}


def test_the_script_sets_text_and_never_markup() -> None:
    script = Page(circuit_html(circuit())).blocks["script"][1]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", script
    )


def test_the_table_holds_every_component_without_a_script() -> None:
    page = Page(circuit_html(circuit()))
    rows = [
        attributes for tag, attributes in page.tags if tag == "tr" and "data-index" in attributes
    ]
    assert len(rows) == 12 + 64 + 3
    scopes = [attributes.get("scope") for tag, attributes in page.tags if tag == "th"]
    assert set(scopes) == {"row", "col"}


def test_controls_have_labels_and_components_can_be_focused() -> None:
    page = Page(circuit_html(circuit()))
    labelled = {attributes.get("for") for tag, attributes in page.tags if tag == "label"}
    inputs = {attributes["id"] for tag, attributes in page.tags if tag in ("input", "select")}
    assert inputs <= labelled
    script = page.blocks["script"][1]
    for needed in ("tabindex", "aria-label", "aria-pressed", "ArrowUp", "Escape"):
        assert needed in script


def colours() -> list[dict[str, str]]:
    """The colour variables of the light and of the dark page."""
    style = (files("circuitsearch.show") / "templates" / "circuit.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    return [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of sRGB as WCAG 2 defines it."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_reaches_wcag_aa(scheme: int) -> None:
    palette = {name: rgb(colour) for name, colour in colours()[scheme].items()}
    grounds = ("page", "surface", "raised", "band")
    for text in ("ink", "muted", "positive-ink", "negative-ink"):
        for ground in grounds:
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for line in ("positive", "negative", "accent", "other", "strong"):
        assert contrast(palette[line], palette["surface"]) >= 3.0, line  # AA for graphics
    for sign in ("positive", "negative"):
        # The strongest tint under a head's number: half of the sign's colour (`tintLimit`).
        tint = tuple((a + b) / 2 for a, b in zip(palette[sign], palette["surface"], strict=True))
        assert contrast(palette["ink"], tint) >= 4.5, sign


def test_both_schemes_define_the_same_colours() -> None:
    light, dark = colours()
    assert set(light) == set(dark)


def test_a_broken_graph_or_limit_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_circuit_html({"nodes": [{"id": "?"}], "edges": []}, tmp_path / "a.html")
    with pytest.raises(ConfigError, match="edge_limit"):
        write_circuit_html(circuit(), tmp_path / "a.html", edge_limit=-1)
    with pytest.raises(ConfigError, match="two different names"):
        write_circuit_html(circuit(), tmp_path / "a.html", other=circuit(), names=("a", "a"))
    with pytest.raises(DataError):
        write_circuit_html(circuit(), tmp_path / "a.html", other={"nodes": []})
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_one_component_is_drawn() -> None:
    assert data_of(circuit_html({"nodes": [{"id": "M0"}], "edges": []}))["graphs"][0]["edges"] == []
