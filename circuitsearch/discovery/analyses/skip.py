"""Leaving out sub-layers, one and two at a time (Donut-MINT, arXiv 2509.26235, Figure 3).

Perplexity is exp of the mean cross-entropy of the answer's tokens under teacher forcing, so the
logarithm of a ratio of perplexities is a difference of mean losses in nats: the effect that
`patching.components` measures. Beside it stands the score, the estimate from gradients.
"""

from __future__ import annotations

from circuitsearch.core.findings import Cell, Chart, Finding, Series, Table, Verdict

from .material import Material
from .measures.skip import METHODS, Skipped, measured, score_agreement
from .shared import Interval, cannot, judged, landmarks, perplexities, poor_note, told

__all__ = ["skip_analysis"]

_INTERACTIONS = 10

_ASKS = (
    "A decoder is a chain of sub-layers that each add something to a running vector per token: a "
    "self-attention (S) brings in earlier tokens, a cross-attention (C) brings in the page, a "
    "feed-forward (M) reworks each token by itself. Leave one out: how much worse does the model "
    "predict the right answer? What costs nothing is the first thing that a smaller student can "
    "do without; what costs much is where the work is done."
)
_METHOD = (
    "The model reads the question and the right answer; a sub-layer is skipped by leaving its "
    "write out, bias included, with everything behind it run anew. Perplexity is exp of the mean "
    "loss; the log-ratio is the logarithm of perplexity without the sub-layer over perplexity with "
    "it, in nats (0.69 doubles it). The source leaves open how the mean is taken: over all answer "
    "tokens (default, judged) or over questions, and with the tags that close an answer (default) "
    "or without. Questions are put to the model in the case of its own prompt. Intervals: 95 %, "
    "bootstrap over documents."
)
_SAYS = "The last cross-attention is the sub-layer that the model can least do without."
_PAPER = "C3 costs most of all twelve (shown by colour, without numbers)"
_RULE = (
    "log-ratio of skipping the last cross-attention minus the largest log-ratio of any other "
    "sub-layer, over answer tokens: shown if its whole interval is above 0, not shown if it is at "
    "or below 0, open otherwise"
)


def skip_analysis(material: Material) -> Finding:
    """Skip every sub-layer and every pair, and compare with what gradients estimate.

    Args:
        material: teacher and pages; `pages` are measured.

    Returns:
        Perplexities, log-ratios (nats) and scores by sub-layer, the strongest interactions of
        pairs, and whether the last cross-attention costs most (arXiv 2509.26235, Figure 3).
    """
    found = measured(material)
    questions = len(found.clean)
    return Finding(
        analysis="skip",
        title="Skipping sub-layers",
        asks=_ASKS,
        method=_METHOD,
        examples=questions,
        tables=(
            _perplexity_table(found),
            _effect_table(found),
            _agreement_table(found),
            _interaction_table(found),
        ),
        charts=_charts(found),
        verdicts=(_verdict(material, found),),
        notes=(
            "Effects of two sub-layers need not add up: a pair that costs more than its two parts "
            "can stand in for each other, a pair that costs less feeds one into the other.",
            f"A score ({METHODS[0]}) is estimated from gradients, an effect is measured; where "
            "the two rank sub-layers differently, the effect is right.",
            *poor_note(found.mean(found.clean)),
        ),
        values={
            "effects": {name: found.mean(found.effects[name]) for name in found.names},
            "pairs": {f"{a} {b}": found.mean(v) for (a, b), v in found.pairs.items()},
            "scores": {
                method: {name: found.mean(values) for name, values in scores.items()}
                for method, scores in found.scores.items()
            },
        },
    )


def _perplexity_table(found: Skipped) -> Table:
    """Return perplexities with and without each sub-layer."""
    runs = {"none (clean)": found.clean}
    runs |= {name: found.clean + found.effects[name] for name in found.names}
    rows: list[tuple[Cell, ...]] = []
    for name, losses in runs.items():
        by_token = perplexities(found.averages.over_tokens(losses))
        by_answer = perplexities(found.averages.over_answers(losses))
        rows.append((name, *by_token, *by_answer))
    head = ("skipped", "over answer tokens", "low", "high", "over questions", "low", "high")
    caption = f"Perplexity of the right answer (empty: too large a number); {found.averages.count}"
    return Table(caption, head, tuple(rows))


def _effect_table(found: Skipped) -> Table:
    """Return log-ratios under every reading, and scores."""
    rows: list[tuple[Cell, ...]] = []
    for name in found.names:
        values = found.effects[name]
        without: tuple[Cell, ...] = (None, None, None)
        if found.bare is not None:
            averages, bare = found.bare
            without = averages.over_tokens(bare[name])
        score = found.averages.over_tokens(found.scores[METHODS[0]][name])
        by_token, by_answer = (
            found.averages.over_tokens(values),
            found.averages.over_answers(values),
        )
        rows.append((name, *by_token, *by_answer, *without, *score))
    columns = ("over answer tokens", "over questions", "without closing tags", "score")
    head = ("skipped", *(title for column in columns for title in (column, "low", "high")))
    caption = (
        "Log-ratio of perplexities (nats), and the score that estimates its first column; "
        f"{found.averages.count}"
    )
    return Table(caption, head, tuple(rows))


def _agreement_table(found: Skipped) -> Table:
    """Return how well each method's scores rank the sub-layers."""
    rows = tuple((method, *score_agreement(found, method), len(found.names)) for method in METHODS)
    caption = (
        "Rank agreement (Spearman, -1 to 1) of scores with log-ratios over answer tokens; "
        f"{found.averages.count}"
    )
    return Table(caption, ("method", "Spearman", "low", "high", "sub-layers"), rows)


def _interaction_table(found: Skipped) -> Table:
    """Return the pairs whose effect differs most from the sum of its parts."""
    together = found.interactions()
    strongest = sorted(together, key=lambda pair: (-abs(found.mean(together[pair])), pair))
    rows: list[tuple[Cell, ...]] = []
    for a, b in strongest[:_INTERACTIONS]:
        effect, difference = found.mean(found.pairs[a, b]), found.mean(together[a, b])
        interval = found.averages.over_tokens(together[a, b])
        rows.append((f"{a} {b}", effect, effect - difference, *interval))
    head = ("pair", "log-ratio", "sum of its parts", "difference", "low", "high")
    caption = (
        f"Pairs that interact most: log-ratio (nats) of skipping both, over answer tokens; the "
        f"first {len(rows)} of {len(together)}; {found.averages.count}"
    )
    return Table(caption, head, tuple(rows))


def _charts(found: Skipped) -> tuple[Chart, ...]:
    """Return bars for single sub-layers, and a map of the pairs."""
    bars = []
    for title, values in (
        ("effect", found.effects),
        (f"score ({METHODS[0]})", found.scores[METHODS[0]]),
    ):
        ends = [found.averages.over_tokens(values[name]) for name in found.names]
        y, low, high = zip(*ends, strict=True)
        known = None not in low
        bars.append(Series(title, y, low if known else (), high if known else ()))
    means = {pair: found.mean(values) for pair, values in found.pairs.items()}
    means |= {(b, a): value for (a, b), value in means.items()}
    means |= {(name, name): found.mean(found.effects[name]) for name in found.names}
    lines = tuple(Series(a, tuple(means[a, b] for b in found.names)) for a in found.names)
    what = "log-ratio of perplexities, nats"
    return (
        Chart("Skipping one", "bars", found.names, "sub-layer skipped", what, tuple(bars)),
        Chart(
            "Skipping two (on the diagonal: one)",
            "heat",
            found.names,
            "sub-layers skipped",
            what,
            lines,
        ),
    )


def _verdict(material: Material, found: Skipped) -> Verdict:
    """Judge the last cross-attention against the runner-up."""
    last = landmarks(material.view.sublayers).last_cross
    if last is None or len(found.names) < 2:
        why = "the decoder has no cross-attention beside other sub-layers"
        return cannot("Figure 3", _SAYS, _PAPER, why, _RULE)
    others = [name for name in found.names if name != last.name]
    rival = max(others, key=lambda name: found.mean(found.effects[name]))
    values = found.effects[last.name]
    difference = found.averages.over_tokens(values - found.effects[rival])
    here = (
        f"{last} {_nats(found.averages.over_tokens(values))}, the costliest other one, {rival}, "
        f"{_nats(found.averages.over_tokens(found.effects[rival]))}; difference "
        f"{_nats(difference)}; {found.averages.count}"
    )
    return Verdict("Figure 3", _SAYS, _PAPER, here, judged(*difference[1:], 0.0), _RULE)


def _nats(interval: Interval) -> str:
    return told(*interval, unit="nats")
