"""The report's sections of evidence: scores, answers side by side, speed, how to do it again."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import yaml

from circuitsearch.core.amounts import shown
from circuitsearch.core.scores import Scores
from circuitsearch.show.report_figures import calibration_svg, pairs
from circuitsearch.show.report_found import trust_words
from circuitsearch.show.report_markup import Markup, details, element, joined, preformatted, table
from circuitsearch.show.report_material import Material
from circuitsearch.show.report_record import GROUPS, Asked, Record, Said
from circuitsearch.show.report_results import figure, missing
from circuitsearch.show.text import DASH, flat, signed

__all__ = ["FILES", "answers_section", "redo_section", "scores_section", "speed_section"]

FILES = {
    "result.md": "the result table, for people",
    "result.json": "the same for programs",
    "circuit.html": "the circuit graph as a page",
    "circuit.json": "the circuit graph as node-link JSON",
    "scores.json": "scores and effects of all components",
    "quality.svg": "quality against parameters, as a figure of its own",
    "speed.md": "measured speed of every row",
    "predicted.json": "what was expected of every share of the budget before any training",
    "trials.json": "every plan that the search trained: who proposed it, what it reached",
    "study.db": "the study: every trial, readable with circuitsearch top and show",
    "search.yaml": "the resolved configuration",
    "student": "the best student, a Hugging Face checkpoint",
    "report.json": "what this page tells beside the other files",
}
"""What a search leaves in its folder, in the order of the report."""

# Facts that other sections tell; the command there is of the searches that come with the project.
_ELSEWHERE = frozenset(("title", "command", "calibration", "prior trust"))

_AGREEMENT = ("spearman", "pearson", "slope")  # first, in this order


def scores_section(material: Material) -> Markup:
    """Return scores against effects, how well they agree, and what the prior was worth."""
    parts: list[Markup] = []
    scores = material.scores
    if scores is None:
        parts.append(missing("scores.json is not in the folder."))
    else:
        parts.append(_calibration(scores))
    found = material.found
    words = trust_words(
        None if found is None else found.trust,
        0 if found is None else len(found.measurements),
        None if found is None else found.ranking_trust,
    )
    parts += [element("h3", "What the effects were worth"), element("p", words)]
    return joined((*parts, *_predicted(material)))


def _predicted(material: Material) -> list[Markup]:
    """Return what was expected of every share of the budget before anything was trained."""
    if not material.curves:
        return []
    by_effects, ranked = (
        {row["percent"]: row for row in material.curves[name]} for name in ("curve", "ranked")
    )
    lines = [
        [
            f"{percent} %",
            *_point(by_effects.get(percent), "worth"),
            *(_point(ranked.get(percent), "loss") if ranked else ()),
        ]
        for percent in sorted({*by_effects, *ranked})
    ]
    head = ["Share of the budget", "Best by effects", "Sum of effects"]
    head += ["Best by predicted loss", "Loss"] if ranked else []
    caption = (
        "What effects, in the unit of their metric, and predicted loss, in nats, expect of every "
        "share of the budget. Shares are of what components may cost; what every student has is "
        "not counted. The predicted loss is that under the elastic teacher, joined by that without "
        "training where all plans are ranked, or that under weights between both"
    )
    numbers = [place for place in (0, 2, 4) if place < len(head)]
    return [
        element("h3", "Expected before the first training"),
        table(caption, head, lines, numbers=numbers),
    ]


def _point(row: Mapping[str, Any] | None, value: str) -> list[str]:
    """Return plan and value of a point."""
    if row is None:
        return [DASH, DASH]
    return [
        element("code", row["plan"]),
        signed(row[value]) if value == "worth" else f"{row[value]:.4f}",
    ]


def _calibration(scores: Scores) -> Markup:
    """Return figure, agreement and table of scores and effects."""
    parts = [
        element(
            "p",
            f"A score estimates and an effect measures how much {scores.metric} rises when a "
            f"component is removed from the teacher ({scores.ablation} ablation, "
            f"{scores.examples:,} examples). Scores by {scores.method}.",
        )
    ]
    known = pairs(scores, heads=False) + pairs(scores, heads=True)
    if known:
        svg = calibration_svg(
            scores,
            "scores",
            "Scatter plot of scores against effects; the table below holds its numbers",
        )
        caption = (
            "One mark per component, the larger sub-layers by name. On the dashed line the "
            "estimate equals the measurement."
        )
        parts.append(figure(svg, caption))
    if scores.calibration:
        parts.append(_agreement(scores.calibration))
    rows = [
        [
            one.component,
            *(
                DASH if value is None else signed(value)
                for value in (one.effect, one.effect_sd, one.score, one.score_sd)
            ),
        ]
        for one in scores.components
    ]
    head = ["Component", "Effect", "Sd", "Score", "Sd"]
    made = table("Effects and scores of all components", head, rows, numbers=range(1, 5))
    return joined((*parts, details("All components as a table", made)))


def _agreement(calibration: Mapping[str, float]) -> Markup:
    """Return one row per kind of component, one column per number."""
    split = {name: name.rpartition(".") for name in calibration}
    kinds = sorted({kind for _, _, kind in split.values()}, key=lambda kind: (_rank(kind), kind))
    groups = sorted({group for group, _, _ in split.values()}, reverse=True)
    lines = []
    for group in groups:
        values = {kind: calibration[n] for n, (own, _, kind) in split.items() if own == group}
        told = [signed(values[kind]) if kind in values else DASH for kind in kinds]
        lines.append([{"sublayers": "sub-layers", "": "all"}.get(group, group), *told])
    caption = (
        "How well scores agree with effects: by rank (Spearman), on a line (Pearson), in size "
        "(slope; 1 is right)"
    )
    head = ["Components", *(kind.capitalize() for kind in kinds)]
    return table(caption, head, lines, numbers=range(1, len(head)))


def _rank(kind: str) -> int:
    return _AGREEMENT.index(kind) if kind in _AGREEMENT else len(_AGREEMENT)


def answers_section(material: Material) -> Markup:
    """Return questions with the answers of teacher and student side by side."""
    record = material.record
    if record is None or not record.asked:
        return missing("No answers are kept in the folder; `circuitsearch run` adds them.")
    total = sum(record.outcomes.values())
    told = ", ".join(f"{name} {record.outcomes.get(name, 0):,}" for name in GROUPS)
    lead = (
        f"Who answered exactly right, of {total:,} final questions (student: {record.student}): "
        f"{told}. Below are {len(record.asked)} of them, each group in turn, in an order drawn "
        "from the questions' names."
    )
    return joined((element("p", lead), *map(_asked, record.asked)))


def _asked(one: Asked) -> Markup:
    """Return one question: the page, accepted answers, both models' answers."""
    if one.image is None:
        picture = element("p", f"Page {one.page}; its image is not part of this report.")
        picture = element("div", picture, kind="note")
    else:
        source = "data:image/png;base64," + base64.b64encode(one.image).decode("ascii")
        # The data is no text to be cleaned, and base64 holds nothing to escape.
        picture = Markup(f'<img src="{source}" {_alt(f"Page {one.page}")}>')
    golds = joined((element("q", gold) for gold in one.golds), " or ")
    lines = element(
        "dl",
        element("dt", "Accepted"),
        element("dd", golds),
        element("dt", "Teacher"),
        _said(one.teacher),
        element("dt", "Student"),
        _said(one.student),
    )
    text = element("div", element("h3", one.question, dir="auto"), lines)
    return element("article", element("div", picture), text, kind="asked")


def _alt(words: str) -> str:
    """Return an image's text, escaped."""
    made = element("img", alt=words)
    return made.removeprefix("<img ").removesuffix(">")


def _said(said: Said) -> Markup:
    """Return an answer and, in words, how good it is."""
    if said.exact:
        word, kind = "right", "right"
    elif said.anls > 0:
        word, kind = f"close, ANLS {said.anls:.2f}", "close"
    else:
        word, kind = "wrong", "wrong"
    answer = element("q", said.answer) if said.answer.strip() else element("em", "no answer")
    return element("dd", answer, Markup(" "), element("span", f"({word})", kind=kind), dir="auto")


def speed_section(material: Material) -> Markup:
    """Return what was measured of each row's student on this machine."""
    if not material.speeds:
        return missing("speed.json is not in the folder: speed was not measured.")
    head = ["Student", "First token", "Per token", "Answer", "Encoder", "Peak memory, decoder"]
    head.append("Peak memory, total")
    names = [row.name for row in material.rows]
    # Rows of the table in its order; what else was measured follows.
    names += [name for name in material.speeds if name not in names]
    ordered = [(name, material.speeds[name]) for name in names if name in material.speeds]
    lines = [
        [
            name,
            *(
                shown("latency", time)
                for time in (one.first_token, one.per_token, one.decoding, one.encoding)
            ),
            *(shown("memory", size) for size in (one.decoder_memory, one.total_memory)),
        ]
        for name, one in ordered
    ]
    _, first = ordered[0]
    note = (
        f"One page, {first.generation.prompt} prompt tokens, {first.generation.passes} passes, on "
        f"{first.where}. Answer is all passes, without the encoder."
    )
    return joined(
        (table("One answer of every student", head, lines, numbers=range(1, 7)), missing(note)),
    )


def redo_section(material: Material, *, links: bool) -> Markup:
    """Return command, environment, facts, settings and files.

    Args:
        material: of the report.
        links: whether the page lies beside the files, so that links to them lead somewhere.
    """
    record = material.record
    parts: list[Markup] = []
    if record is None:
        parts.append(missing("report.json is not in the folder; `circuitsearch run` writes it."))
    else:
        parts += _commands(record)
    facts = {name: value for name, value in material.facts.items() if name not in _ELSEWHERE}
    parts += [element("h3", "What was run"), _terms(facts)]
    files = [element("li", _file(name, links), f": {words}.") for name, words in FILES.items()]
    parts += [element("h3", "Files"), element("ul", *files, kind="notes")]
    return joined(parts)


def _commands(record: Record) -> list[Markup]:
    """Return command, environment and settings."""
    told = (
        "In the folder of the search; the settings are those of search.yaml there. It runs "
        "everything anew into a folder of its own."
    )
    parts = [
        element("h3", "Command"),
        element("p", told),
        preformatted(record.command),
        element("h3", "Environment"),
        _terms(record.environment),
    ]
    if record.settings:
        text = yaml.safe_dump(dict(record.settings), sort_keys=False, allow_unicode=True)
        parts.append(details("All settings", preformatted(text.rstrip())))
    return parts


def _file(name: str, links: bool) -> Markup:
    """Return a file's name, as a link where it leads somewhere."""
    code = element("code", name)
    return element("a", code, href=name) if links else code


def _terms(facts: Mapping[str, Any]) -> Markup:
    """Return facts as a list of terms."""
    return element(
        "dl",
        *(
            part
            for name, value in flat(facts)
            for part in (element("dt", name), element("dd", value))
        ),
    )
