"""The page of the analyses: everything escaped, every verdict told, the same bytes every time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from circuitsearch.core.errors import DataError
from circuitsearch.core.findings import ANSWERS, Finding
from circuitsearch.show.analysis_charts import charts_of
from circuitsearch.show.analysis_files import write_findings
from circuitsearch.show.analysis_page import analyses_html
from circuitsearch.show.analysis_text import (
    SYMBOLS,
    cell_text,
    findings_markdown,
    print_verdicts,
    tally,
)
from circuitsearch.show.text import one_line
from tests.show.findings import FACTS, bars, finding, findings
from tests.show.test_report_page import EVIL, FOREIGN, POLICY, Reader

SEEN = one_line(EVIL)


def html(given: Mapping[str, Finding], facts: dict[str, Any]) -> str:
    return analyses_html(given, facts, charts_of(given))


@pytest.fixture(scope="module")
def page() -> str:
    return html(findings(), FACTS)


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    return Reader(page)


def test_foreign_text_becomes_no_tag_and_is_shown_whole() -> None:
    evil = Reader(html(findings(EVIL), {EVIL: EVIL, "title": EVIL}))
    plain = Reader(html(findings("plainwords"), {"fact": "x", "title": "plainwords"}))
    assert evil.shape == plain.shape
    assert not evil.comments
    drawn = {tag for tag, _ in evil.drawn}
    assert drawn <= {"path", "use", "g", "defs", "clippath", "rect", "pattern"}
    for tag, attrs in evil.tags + evil.drawn:
        assert tag not in FOREIGN
        assert not any(name.startswith("on") for name in attrs)
        assert not any("javascript:" in (value or "") for value in attrs.values())
    # every place that shows the harmless word shows the hostile one, and two facts more
    text, expected = "".join(evil.texts), "".join(plain.texts).count("plainwords")
    assert expected > 100
    assert text.count(SEEN) == expected + 2
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_page_fetches_nothing(page: str, read: Reader) -> None:
    metas = [attrs for tag, attrs in read.tags if tag == "meta"]
    assert metas[1] == {"http-equiv": "Content-Security-Policy", "content": POLICY}
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)", page))
    assert not {tag for tag, _ in read.tags + read.drawn} & (FOREIGN | {"img", "image"})


def test_references_lead_somewhere_and_headings_step_by_one(page: str, read: Reader) -> None:
    every = read.tags + read.drawn
    names = [attrs["id"] for _, attrs in every if "id" in attrs]
    assert len(names) == len(set(names))
    wanted = {(a["href"] or "")[1:] for _, a in every if (a.get("href") or "")[:1] == "#"}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert {"claims", "analysis-whole", "analysis-small", "redo"} <= wanted <= set(names)
    assert all((a["href"] or "").startswith("#") for _, a in every if "href" in a)
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    regions = [attrs["aria-label"] for _, attrs in read.tags if attrs.get("role") == "region"]
    assert len(regions) == len(set(regions))


def test_every_verdict_is_there_as_a_word_with_its_sign(page: str) -> None:
    assert set(SYMBOLS) == set(ANSWERS)
    assert len(set(SYMBOLS.values())) == len(ANSWERS)
    for answer in ANSWERS:
        word = f'<span aria-hidden="true">{SYMBOLS[answer]}</span> {answer}</span>'
        claims = 2 if answer == ANSWERS[0] else 1  # the small finding has one verdict
        assert page.count(word) == 2 * claims  # claim by claim, and in its section
    table = page.split("</table>")[0]
    for words in ("Claim", "What it says", "Published", "This teacher", "Verdict", "0.71 [0.65"):
        assert words in table
    assert page.count("shown if the whole interval is above 0.5") == 6


def test_long_tables_and_numbers_of_charts_are_folded(page: str, read: Reader) -> None:
    assert [tag for tag, _ in read.tags].count("details") == 1 + 3
    text = " ".join(read.texts)
    assert "Every part (40 rows)" in text
    for words in (
        "12,345",
        "1.234e\N{MINUS SIGN}05",
        "Examples: 120.",
        "rule 2 low",
        "H2",
        "it. Error bars",
    ):
        assert words in text, words
    figures = [attrs for tag, attrs in read.tags if tag == "svg"]
    assert len(figures) == 3
    assert "Lines: Kept by size. share by heads kept" in str(figures[1]["aria-label"])


def test_no_findings_and_odd_names_make_a_page() -> None:
    assert "No analysis was run." in html({}, {})
    odd = Reader(html({"X <1>": finding("X <1>", whole=False)}, {"title": "t"}))
    assert "analysis-1" in [attrs.get("id") for _, attrs in odd.tags]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("as it is", "as it is"),
        (1234567, "1,234,567"),
        (-2, "\N{MINUS SIGN}2"),
        (0.123456, "0.1235"),
        (123456.7, "123,457"),
        (-0.00001, "\N{MINUS SIGN}1e\N{MINUS SIGN}05"),
        (0.0, "0"),
    ],
)
def test_cells_are_short(value: str | float | None, text: str) -> None:
    assert cell_text(value) == text


def test_the_markdown_holds_claims_rules_tables_and_escapes_them() -> None:
    text = findings_markdown(findings(), FACTS)
    assert "6 claims: 2 shown, 1 partly, 1 not shown, 1 open, 1 cannot be asked." in text
    assert text.count("Rule: shown if the whole interval") == 6
    assert "![Rise without it](whole-1.png)" in text
    assert "| none | 0 |  |  |" in text
    evil = findings_markdown(findings(EVIL), {"title": EVIL})
    assert "<script>" not in evil
    assert not re.search(r"(?<!\\)\]\(https", evil)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in evil.splitlines() if line[:1] == "|"}
    assert widths == {5, 6}  # no cell has become two


def test_verdicts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_verdicts(findings("[red]x\x1b[0m"), Console(width=200))
    printed = capsys.readouterr().out
    assert "[red]x" in printed
    assert "\x1b[0m" not in printed
    for answer in ANSWERS:
        assert f"{SYMBOLS[answer]} {answer}" in printed
    assert tally(findings().values()) in printed
    assert tally([finding("a", whole=False)]) == "1 claim: 1 shown."
    assert tally([]) == "0 claims."


NAMES = {"analyses.json", "analyses.md", "analyses.html", "whole.json", "small.json"}
CHARTS = {f"whole-{number}.{kind}" for number in (1, 2, 3) for kind in ("png", "svg")}


def test_files_are_written_alike_twice_and_read_back(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert write_findings(first, findings(), FACTS) == first / "analyses.html"
    write_findings(second, findings(), FACTS)
    assert {path.name for path in first.iterdir()} == NAMES | CHARTS
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    told = json.loads((first / "whole.json").read_text())
    assert Finding.from_json(told) == findings()["whole"]
    every = json.loads((first / "analyses.json").read_text())
    assert {n: Finding.from_json(one) for n, one in every["findings"].items()} == findings()
    assert every["order"] == [*findings()]
    assert every["facts"] == FACTS


def test_what_an_earlier_call_wrote_goes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "small-1.png").write_bytes(b"mine")
    whole, small = findings().values()
    two, one = (replace(whole, charts=(bars(3, 1),) * number) for number in (2, 1))
    expected = {"small-1.png", "analyses.json", "analyses.md", "analyses.html"}
    for given, names in (
        ({"whole": two, "small": small}, NAMES | CHARTS - {"whole-3.png", "whole-3.svg"}),
        ({"whole": one}, {"whole.json", "whole-1.png", "whole-1.svg"}),
        ({"small": small}, {"small.json"}),
    ):
        write_findings(tmp_path, given, FACTS)
        assert {path.name for path in tmp_path.iterdir()} == expected | names
    (tmp_path / "analyses.json").write_text('{"findings": 3}')  # not ours: nothing is removed
    write_findings(tmp_path, {}, FACTS)
    assert (tmp_path / "small.json").exists()


def test_facts_that_are_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="JSON"):
        write_findings(tmp_path, {}, {"when": object()})
