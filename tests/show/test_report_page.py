from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.errors import DataError
from circuitsearch.core.files import write_json
from circuitsearch.core.scores import Scores
from circuitsearch.show.report import write_report, write_result
from circuitsearch.show.report_evidence import FILES, scores_section
from circuitsearch.show.report_material import Material, teacher_of
from circuitsearch.show.report_page import report_html
from circuitsearch.show.report_record import Said
from circuitsearch.show.report_results import cost_section, kept_section, search_section
from circuitsearch.show.rows import recounted, trial_rows
from circuitsearch.show.text import one_line
from tests.show.report_fixtures import (
    asked,
    curves,
    found,
    picture,
    record,
    rows,
    scores,
    speeds,
    write,
)
from tests.show.results import SHAPE

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
EVIL = (
    "\"><script>alert(1)</script><img src=x onerror=alert(2)>' onmouseover='alert(3) "
    "</svg></style></title></pre><!-- ]]> {{body}} &lt;b&gt; [x](https://e) \u202e\x1b[31m\n# x"
)
SEEN = one_line(EVIL)
FOREIGN = frozenset(
    ("script", "iframe", "object", "embed", "link", "form", "base", "foreignobject")
)


class Reader(HTMLParser):
    """Elements outside figures as (tag, attributes), those of figures apart, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.drawn: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.comments: list[str] = []
        self._inside = 0
        self._style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs))
        (self.drawn if self._inside else self.tags).append((tag, dict(attrs)))
        self._inside += tag == "svg"
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._inside -= tag == "svg"
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        """Tags and names of attributes."""
        return [(tag, tuple(attrs)) for tag, attrs in self.tags]


def material(word: str | None = None, **other: Any) -> Material:
    """A whole report; `word` stands wherever foreign text may."""
    table, told, kept, study = rows(), scores(), record(), found()
    facts: dict[str, Any] = {"title": word or "Made up", "teacher": word or "donut", "n": [1, 2]}
    if word is not None:
        table = tuple(
            replace(row, name=word, source=word, notes=(word,), difference_to=word)
            if row.name == "T1"
            else row
            for row in table
        )
        told = replace(told, metric=word, ablation=word, method=word)
        one = asked(
            question=word,
            page=word,
            golds=(word, "x"),
            teacher=Said(word, 1.0, True),
            student=Said(word, 0.0, False),
        )
        kept = replace(
            kept,
            asked=(one, replace(one, image=None)),
            command=word,
            student=word,
            environment={word: word},
            settings={word: word},
        )
        trials = (replace(study.measurements[0], source=word), *study.measurements[1:])
        study = replace(study, measurements=trials, sampler=word)
        facts[word] = {word: word}
    values = {
        "rows": table,
        "facts": facts,
        "found": study,
        "scores": told,
        "speeds": {
            name: replace(one, where=word or one.where) for name, one in speeds(table).items()
        },
        "record": kept,
        "curves": curves(word or "S0 C0"),
    }
    return Material(**{**values, **other})


@pytest.fixture(scope="module")
def page() -> str:
    return report_html(material(), links=True)


@pytest.fixture(scope="module")
def evil() -> Reader:
    return Reader(report_html(material(EVIL)))


@pytest.fixture(scope="module")
def plain() -> Reader:
    return Reader(report_html(material("plainwords")))


def test_foreign_text_becomes_no_tag_no_attribute_and_no_comment(
    evil: Reader, plain: Reader
) -> None:
    # The same elements with the same attributes, whatever the words are.
    assert evil.shape == plain.shape
    assert not evil.comments
    # Figures differ in their outlines, but are made of shapes alone.
    known = {tag for tag, _ in plain.drawn} | {"path", "use", "g", "defs", "clippath", "rect"}
    assert {tag for tag, _ in evil.drawn} <= known
    assert not known & FOREIGN
    for tag, attrs in evil.tags + evil.drawn:
        assert tag not in FOREIGN
        assert not any(name.startswith("on") for name in attrs)
        assert not any("javascript:" in (value or "") for value in attrs.values())


def test_foreign_text_is_shown_whole_wherever_it_stands(evil: Reader, plain: Reader) -> None:
    text, expected = "".join(evil.texts), "".join(plain.texts).count("plainwords")
    assert expected > 30
    assert text.count("<script>alert(1)</script>") == expected
    # whole and on one line, but for the command, which keeps its lines, and the YAML of settings
    assert text.count(SEEN) == expected - 3
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_policy_comes_first_and_nothing_is_fetched(page: str) -> None:
    read = Reader(page)
    metas = [attrs for tag, attrs in read.tags if tag == "meta"]
    assert metas[0] == {"charset": "utf-8"}
    assert metas[1] == {"http-equiv": "Content-Security-Policy", "content": POLICY}
    without = page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "http" not in without
    assert "@import" not in page
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)", page))
    for _, attrs in read.tags + read.drawn:
        if "src" in attrs:
            assert (attrs["src"] or "").startswith("data:image/png;base64,")
        if "href" in attrs:
            target = attrs["href"] or ""
            assert target.startswith("#") or target in FILES
    assert not {tag for tag, _ in read.tags + read.drawn} & FOREIGN


def test_identifiers_are_unique_and_every_reference_leads_somewhere(page: str) -> None:
    read = Reader(page)
    every = read.tags + read.drawn
    names = [attrs["id"] for _, attrs in every if "id" in attrs]
    assert len(names) == len(set(names))
    wanted = {
        (attrs["href"] or "")[1:] for _, attrs in every if (attrs.get("href") or "")[:1] == "#"
    }
    wanted |= {attrs["aria-labelledby"] or "" for _, attrs in every if "aria-labelledby" in attrs}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert wanted <= set(names)


def test_the_page_is_semantic(page: str) -> None:
    read = Reader(page)
    tags = [tag for tag, _ in read.tags]
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert tags.count("main") == tags.count("nav") == 1
    assert tags.count("section") == 8
    assert tags.count("caption") == tags.count("table")
    assert all(attrs.get("scope") for tag, attrs in read.tags if tag == "th")
    assert all(attrs.get("alt") for tag, attrs in read.tags if tag == "img")
    figures = [attrs for tag, attrs in read.tags if tag == "svg"]
    assert len(figures) == 4
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in figures)
    assert dict(read.tags)["html"] == {"lang": "en"}


def test_the_numbers_of_the_table_are_there(page: str) -> None:
    text = " ".join(Reader(page).texts)
    for words in (
        "..M ... .C. SC.",
        "20.97 M",
        "757 G",
        "MACs (cached)",
        "9.75 ms",
        "64 x 300 steps",
        "Spearman 0.50 between",
        "both 3, teacher alone 2, student alone 1, neither 4",
        "(right)",
        "(close, ANLS 0.80)",
        "(wrong)",
        "no answer",
        "its image is not part of this report",
        "circuitsearch run out/search.yaml",
        "source: rendered",
    ):
        assert words in text, words


def test_every_trial_is_in_the_tables(page: str) -> None:
    text = " ".join(Reader(page).texts)
    for one in found().measurements:
        assert f"{one.quality:.3f}" in text


def test_two_writes_are_equal_and_links_stay_at_home(tmp_path: Path) -> None:
    write(tmp_path, rows())
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    other = write_report(tmp_path, out=tmp_path / "sub" / "r.html").read_bytes()
    assert b'href="result.md"' in first
    assert b'href="result.md"' not in other
    # nothing but the links differs
    assert "".join(Reader(first.decode()).texts) == "".join(Reader(other.decode()).texts)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    write_result(tmp_path, rows(), {"title": "Table alone"})
    text = " ".join(Reader(write_report(tmp_path).read_text("utf-8")).texts)
    for words in (
        "database is not in the folder",
        "scores.json is not",
        "speed.json is not",
        "report.json is not",
        "No answers are kept",
        "Not known",
    ):
        assert words in text, words


def test_what_was_expected_of_every_share_is_a_table(page: str) -> None:
    told = " ".join(" ".join(Reader(page).texts).split())
    assert "Expected before the first training" in told
    assert "Best by predicted loss" in told
    assert "20 % S0 C0 +1.25 \N{EN DASH} \N{EN DASH}" in told  # the ranking has no plan so small
    assert "100 % S0 C0 +2.5 S0 C0 0.4321" in told
    alone = material(curves={**curves("C0"), "ranked": []})
    assert "Best by predicted loss" not in " ".join(Reader(report_html(alone)).texts)


def test_malformed_curves_are_refused(tmp_path: Path) -> None:
    write_result(tmp_path, rows(), {"title": "Table alone"})
    file = tmp_path / "predicted.json"
    for faulty in ([], {"of": "x"}, {"curve": [{"percent": "1", "plan": "C0", "worth": 1}]}):
        write_json(file, faulty)
        with pytest.raises(DataError, match=r"predicted\.json"):
            write_report(tmp_path)
    earlier = {"of": "x", "curve": curves("C0")["curve"]}  # without a ranking, as it was written
    write_json(file, earlier)
    assert "Best by effects" in write_report(tmp_path).read_text("utf-8")


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"result\.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_table_without_its_teacher_is_refused() -> None:
    with pytest.raises(DataError, match="teacher"):
        report_html(material(rows=rows()[1:]))


def test_trials_without_answers_are_told() -> None:
    trials = tuple(replace(one, quality=None) for one in found(3).measurements)
    unanswered = material(found=replace(found(3), measurements=trials))
    assert "trained no student that answered" in search_section(unanswered)
    assert "trained no student." in kept_section(material(found=found(0)))


def test_components_without_effects_make_no_figure() -> None:
    bare = tuple(replace(one, effect=None) for one in scores().components)
    told = scores_section(material(scores=Scores(**{**vars(scores()), "components": bare})))
    assert "<svg" not in told
    assert "Effects and scores of all components" in told


def test_free_heads_are_counted_one_by_one() -> None:
    read = Reader(kept_section(material(found=found(heads=True))))
    assert "Heads kept by the best plans" in " ".join(read.texts)
    # 12 sub-layers, and 8 attentions of 16 heads
    heat = re.compile(r"f(\d|10)")
    assert sum(bool(heat.fullmatch(attrs.get("class") or "")) for _, attrs in read.tags) == 140


def test_a_budget_of_cached_macs_has_a_figure_of_its_own() -> None:
    limits = Budget.resolve([LimitSpec("macs", "50%", "decoder", "cached")], SHAPE).limits
    page = cost_section(material(found=found(limits=limits)))
    assert "Against MACs (cached)" in page
    assert "Against MACs (paper)" in page
    teacher = teacher_of(rows())
    best = recounted(rows()[-1], teacher, "cached")
    assert best is not None
    assert best.macs == rows()[-1].macs_in["cached"]
    assert best.macs_share == best.macs / teacher.macs_in["cached"]
    assert recounted(replace(teacher, macs_in={}), teacher, "cached") is None


def test_plans_distilled_again_in_full_are_points_of_their_own() -> None:
    again = replace(found(2).measurements[0], phase="full", quality=0.777)
    table = cost_section(material(found=found(2, promoted=(again,))))
    assert "0.777" in table
    assert "0.777" not in search_section(material(found=found(2, promoted=(again,))))


def test_rows_of_trials_refer_to_the_teacher() -> None:
    made = trial_rows(found(4).measurements, teacher_of(rows()))
    assert [row.name for row in made] == ["trial 1", "trial 2", "trial 3", "trial 4"]
    assert all(row.parameters_share == row.parameters / (64 * 2**20) for row in made)
    broken = replace(found(1).measurements[0], cost={})
    with pytest.raises(DataError, match="accounting 'paper'"):
        trial_rows([broken], teacher_of(rows()))


def test_a_large_search_stays_below_two_megabytes(tmp_path: Path) -> None:
    image = picture((560, 800)) + bytes(150_000)  # what six scanned pages take, 16 shades each
    kept = record(asked=tuple(asked(image=image) for _ in range(6)))
    page = report_html(material(rows=rows(30), found=found(200), record=kept))
    assert len(page.encode("utf-8")) < 2 * 10**6


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_the_contrast_of_wcag_aa_in_every_theme() -> None:
    style = (files("circuitsearch.show") / "templates" / "report.css").read_text("utf-8")
    themes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        for ink in ("ink", "muted", "link", "good", "bad", "half"):
            for ground in ("page", "surface"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
    cells = re.findall(r"td\.f\d+ \{ background: (#\w{6}); color: (#\w{6}); \}", style)
    assert len(cells) == 11
    assert all(contrast(*pair) >= 4.5 for pair in cells)
