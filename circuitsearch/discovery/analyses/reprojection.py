"""The stream replaced by its nearest tokens (Donut-MINT, arXiv 2509.26235, Figure 6).

    x' = embedding(argmax(lm_head(norm(x))))

at one sub-layer at a time, the rest of the decoder run anew (`lens.reprojection`). Where this costs
nothing, what stands in front can be replaced by a table of tokens.
"""

from __future__ import annotations

from circuitsearch.core.findings import Cell, Chart, Finding, Series, Table, Verdict

from .material import Material
from .measures.reprojection import Reprojected, Tokens, measured, nearest
from .shared import cannot, judged, landmarks, mean_interval, perplexities, poor_note, told

__all__ = ["reprojection_analysis"]

_CLOSE = 0.05
"""Nats by which a loss may rise and still count as kept: 5 % of perplexity."""

_ASKS = (
    "Between two sub-layers a decoder holds a vector per token that could say far more than which "
    "token it is. Does it, early on? The test throws all else away: each vector is read as a "
    "token, and that token's embedding is put in its place. If answers stay as good, the "
    "sub-layers in front did no more than turn tokens into tokens, and a table can replace them."
)
_METHOD = (
    "At one sub-layer at a time the vectors that it reads are replaced, those of question and "
    "answer alike, and the rest of the model is run anew on the right answer. A vector's token is "
    "the one with the largest logit. The source leaves open three things; the default comes "
    "first and is judged. Norm in front of the logits: the final one, or none. Embedding put back: "
    "full, as the decoder itself puts it in; positioned, without the norm behind it; scaled, "
    "without the position too; raw, the bare row of the table. Where: every token in front of the "
    "sub-layer, the prompt's tokens only, or every token behind it. The log-ratio is the logarithm "
    "of perplexity with over perplexity without, in nats; perplexity is taken over answer tokens "
    "(default) or over questions, with the tags that close an answer (default) or without. "
    "Intervals: 95 %, bootstrap over documents."
)
_SAYS_FIGURE = "In front of the first feed-forward, the vectors can be replaced by nearest tokens."
_PAPER_FIGURE = "answers stay almost as they were (shown by colour, without numbers)"
_RULE_FIGURE = (
    "log-ratio of replacing the vectors in front of the first feed-forward, over answer tokens: "
    f"shown if its whole interval is below {_CLOSE} nats, not shown if it is at or above, open "
    "otherwise"
)
_SAYS_TAGS = (
    "Up to the first feed-forward, tokens become other tokens, special ones more than others."
)
_PAPER_TAGS = "S0 and C0 chiefly align special tokens with those of pre-training (no numbers)"
_RULE_TAGS = (
    "share of a prompt's special tokens whose nearest token in front of the first feed-forward is "
    "another one, minus the same share of its other tokens: shown if the whole interval is above "
    "0, not shown if it is at or below 0, open otherwise"
)


def reprojection_analysis(material: Material) -> Finding:
    """Replace the stream by its nearest tokens at every sub-layer, under every reading.

    Args:
        material: teacher and pages; `pages` are measured.

    Returns:
        Log-ratios of perplexity (nats) by sub-layer and reading, what prompt tokens read as in
        front of the first feed-forward, and whether it may be fed nearest tokens (arXiv
        2509.26235, Figure 6 and the first half of Proposition 3).
    """
    found = measured(material)
    first = landmarks(material.view.sublayers).first_feed
    tokens = None if first is None else nearest(material, first)
    tables = [_by_sublayer(found)]
    if first is not None and tokens is not None:
        tables += [_by_reading(found, first.name), _kept(tokens), _tags(tokens)]
    return Finding(
        analysis="reprojection",
        title="Vectors replaced by their nearest tokens",
        asks=_ASKS,
        method=_METHOD,
        examples=len(found.clean),
        tables=tuple(tables),
        charts=_charts(found),
        verdicts=(_figure(found, None if first is None else first.name), _aligned(tokens)),
        notes=tuple(
            [f"Here the first feed-forward is {first}."] * (first is not None)
            + [
                "Embeddings other than the full one lie outside of what the sub-layers were "
                "trained to read; they are shown because the source does not say which it takes.",
                *poor_note(found.mean(found.clean)),
            ]
        ),
        values={
            "log-ratios": {
                reading: {name: found.mean(v) for name, v in effects.items()}
                for reading, effects in found.effects.items()
            }
        },
    )


def _by_sublayer(found: Reprojected) -> Table:
    """Return what the default reading costs at every sub-layer."""
    rows: list[tuple[Cell, ...]] = []
    for name, values in found.default.items():
        bare: tuple[Cell, ...] = (None, None, None)
        if found.bare is not None:
            averages, without = found.bare
            bare = averages.over_tokens(without[name])
        by_token, by_answer = (
            found.averages.over_tokens(values),
            found.averages.over_answers(values),
        )
        perplexity = perplexities(found.averages.over_tokens(found.clean + values))
        rows.append((name, *by_token, *by_answer, *bare, *perplexity))
    columns = ("over answer tokens", "over questions", "without closing tags", "perplexity")
    head = ("in front of", *(title for column in columns for title in (column, "low", "high")))
    clean = perplexities(found.averages.over_tokens(found.clean))
    caption = (
        "Log-ratio of perplexities (nats) with vectors replaced by nearest tokens, default reading,"
        f" and perplexity over answer tokens (clean: {told(*clean)}); {found.averages.count}"
    )
    return Table(caption, head, tuple(rows))


def _by_reading(found: Reprojected, first: str) -> Table:
    """Return what every reading costs at the first feed-forward."""
    rows = []
    for reading, effects in found.effects.items():
        values = effects[first]
        by_token = found.averages.over_tokens(values)
        rows.append((reading, *by_token, *found.averages.over_answers(values)))
    head = ("reading", "over answer tokens", "low", "high", "over questions", "low", "high")
    caption = f"Log-ratio (nats) at {first} under every reading; {found.averages.count}"
    return Table(caption, head, tuple(rows))


def _kept(tokens: Tokens) -> Table:
    """Return how many prompt tokens still read as themselves at each place."""
    rows: list[tuple[Cell, ...]] = []
    for place, kept in tokens.kept.items():
        for kind, chosen in (("special tokens", tokens.special), ("other tokens", ~tokens.special)):
            if chosen.any():
                share = tokens.share(kept, chosen)
                rows.append((f"{place}, {kind}", *share, int(chosen.sum())))
    head = ("vectors behind", "read as themselves", "low", "high", "tokens")
    return Table("Share of prompt tokens whose nearest token is themselves", head, tuple(rows))


def _tags(tokens: Tokens) -> Table:
    """Return what each special token of the prompt reads as in front of the first feed-forward."""
    rows: list[tuple[Cell, ...]] = [
        (tag, reading, *tokens.share(hits, chosen), int(chosen.sum()))
        for tag, reading, hits, chosen in tokens.commonest()
    ]
    head = ("special token", "commonest reading", "share", "low", "high", "occurrences")
    caption = f"Special prompt tokens behind {tokens.last}: the token that they read as most often"
    return Table(caption, head, tuple(rows))


def _charts(found: Reprojected) -> tuple[Chart, ...]:
    """Return bars for the default reading, and a map of all readings."""
    names = tuple(found.default)
    y, low, high = zip(*map(found.averages.over_tokens, found.default.values()), strict=True)
    known = None not in low
    bars = Series("default reading", y, low if known else (), high if known else ())
    lines = tuple(
        Series(reading, tuple(found.mean(effects[name]) for name in names))
        for reading, effects in found.effects.items()
    )
    what = "log-ratio of perplexities, nats"
    title = "Vectors replaced by nearest tokens"
    return (
        Chart(title, "bars", names, "in front of sub-layer", what, (bars,)),
        Chart(f"{title}, by reading", "heat", names, "at sub-layer", what, lines),
    )


def _figure(found: Reprojected, first: str | None) -> Verdict:
    """Judge the place in front of the first feed-forward."""
    if first is None:
        why = "the decoder has no feed-forward"
        return cannot("Figure 6", _SAYS_FIGURE, _PAPER_FIGURE, why, _RULE_FIGURE)
    rise = found.averages.over_tokens(found.default[first])
    clean = perplexities(found.averages.over_tokens(found.clean))
    here = (
        f"log-ratio in front of {first} {told(*rise, unit='nats')}, clean perplexity "
        f"{told(*clean)}; {found.averages.count}"
    )
    answer = judged(*rise[1:], _CLOSE, above=False)
    return Verdict("Figure 6", _SAYS_FIGURE, _PAPER_FIGURE, here, answer, _RULE_FIGURE)


def _aligned(tokens: Tokens | None) -> Verdict:
    """Judge whether special tokens change more than others."""
    claim = "Proposition 3, first half"
    gaps, documents = ([], []) if tokens is None else tokens.gaps()
    if tokens is None or not gaps:
        why = "the decoder has no feed-forward, or no prompt has special and other tokens"
        return cannot(claim, _SAYS_TAGS, _PAPER_TAGS, why, _RULE_TAGS)
    gap = mean_interval(gaps, documents, tokens.seed)
    special, other = (
        1 - tokens.share(tokens.kept[tokens.last], chosen)[0]
        for chosen in (tokens.special, ~tokens.special)
    )
    here = (
        f"{special:.2f} of special and {other:.2f} of other tokens read as another one behind "
        f"{tokens.last}; difference within prompts {told(*gap)}; n = {len(gaps)} questions"
    )
    return Verdict(claim, _SAYS_TAGS, _PAPER_TAGS, here, judged(*gap[1:], 0.0), _RULE_TAGS)
