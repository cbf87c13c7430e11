"""Verdicts of the transcription analysis, each with its claim and its rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from circuitsearch.core.findings import Answer, Verdict

from ..shared import Interval, cannot, counted, judged, share_interval, told
from .transcription import ORDERS, Choices, Patches, Reads, percent

__all__ = ["verdicts"]

_NEARLY_ALL, _MOST = 0.9, 0.5
"""Share of patches that makes a transcription, and of answer tokens that makes a retrieval."""

_LENS, _LINEAR = "Proposition 1", "Proposition 1, any linear map"
_FEWER, _CHOICE = "Figure 4, fewer heads", "Figure 4, choice of heads"
_RETRIEVAL = "Proposition 1, retrieval"
_SAYS = {
    _LENS: "The encoder has turned pixels into text, up to the last cross-attention's linear map.",
    _LINEAR: "The encoder has turned pixels into text, up to some linear map.",
    _FEWER: "With the chosen heads alone the page is transcribed better than with all.",
    _CHOICE: "The head statistic chooses heads that transcribe better than random ones.",
    _RETRIEVAL: "The chosen heads, by themselves, retrieve the token that the answer needs.",
}
_PAPER = {
    _LENS: "the page can be transcribed patch by patch; shown as a picture",
    _LINEAR: "entirely done in the encoder, up to a linear map",
    _FEWER: "6 of 16 heads transcribe clearly better; shown as a picture",
    _CHOICE: "heads chosen by the variance of their attention",
    _RETRIEVAL: "six heads of C3 retrieve the token at the patch that C3 attends to",
}
_WHOLE_RULE = (
    f"Shown: the whole interval of patches read right is above {_NEARLY_ALL:.0%}; partly: it lies "
    "below, but reading beats saying the commonest character, whole interval of the difference; "
    "not shown: below both; open otherwise"
)
_BETTER_RULE = (
    "Shown: the whole interval of the difference, patch by patch, lies above 0; not shown: none of "
    "it does; open otherwise. Highest variance is judged"
)
_RULES = {
    _LENS: _WHOLE_RULE,
    _LINEAR: _WHOLE_RULE,
    _FEWER: _BETTER_RULE,
    _CHOICE: _BETTER_RULE,
    _RETRIEVAL: (
        f"Shown: the whole interval of answer tokens lies above {_MOST:.0%}; not shown: none of it "
        "does; open otherwise. Highest variance is judged"
    ),
}


def verdicts(
    choices: Choices, retrieved: Sequence[Reads], patches: Patches | str, seed: int
) -> tuple[Verdict, ...]:
    """Return the verdicts.

    Args:
        choices: heads of the last cross-attention.
        retrieved: answer tokens retrieved by all heads, then by the chosen ones.
        patches: what was read, or why nobody can know what is printed there.
        seed: of the intervals.
    """
    last = _retrieval(choices, retrieved[1], seed)
    if isinstance(patches, str):
        asked = (_LENS, _LINEAR, _FEWER, _CHOICE)
        return (*(_cannot(claim, patches) for claim in asked), last)
    return (
        _whole(_LENS, choices.sublayer, patches.own, patches),
        _cannot(_LINEAR, "the other pages' text is unknown, so there is nothing to fit a map on")
        if patches.fitted is None
        else _whole(_LINEAR, f"fitted on {patches.fitted_on} patches", patches.fitted, patches),
        _better(_FEWER, choices, "all heads", patches.own, patches),
        _better(_CHOICE, choices, "random ones", patches.chosen["random", "none"], patches),
        last,
    )


def _cannot(claim: str, why: str) -> Verdict:
    return cannot(claim, _SAYS[claim], _PAPER[claim], why, _RULES[claim])


def _whole(claim: str, what: str, hits: np.ndarray, patches: Patches) -> Verdict:
    share, chance = patches.share(hits), patches.share(patches.commonest)[0]
    above = judged(share[1], share[2], _NEARLY_ALL)
    beats = judged(*patches.gain(hits, patches.commonest)[1:], 0)
    below: dict[str, Answer] = {"shown": "partly", "not shown": "not shown", "open": "open"}
    here = (
        f"{what}: {_told(share)} of patches read right, {chance:.0%} by saying the commonest "
        f"character; {patches.count}"
    )
    answer = below[beats] if above == "not shown" else above
    return Verdict(claim, _SAYS[claim], _PAPER[claim], here, answer, _RULES[claim])


def _better(claim: str, choices: Choices, than: str, base: np.ndarray, patches: Patches) -> Verdict:
    if choices.kept == len(choices.order):
        return _cannot(claim, f"{choices.sublayer} has one head, so there is nothing to choose")
    gain, other = (patches.gain(patches.chosen[order, "none"], base) for order in ORDERS[:2])
    here = (
        f"{choices.words} against {than}: {_told(gain)} of patches (lowest variance: "
        f"{_told(other)}); {patches.count}"
    )
    answer = judged(gain[1], gain[2], 0)
    return Verdict(claim, _SAYS[claim], _PAPER[claim], here, answer, _RULES[claim])


def _retrieval(choices: Choices, reads: Reads, seed: int) -> Verdict:
    if not reads.documents:
        return _cannot(_RETRIEVAL, "the answers are made of special tokens only")
    share = share_interval(reads.hits, reads.documents, seed)
    count = counted(len(reads.hits), "answer tokens", reads.documents)
    here = f"{choices.words}: {_told(share)} of answer tokens; {count}"
    answer = judged(share[1], share[2], _MOST)
    return Verdict(
        _RETRIEVAL, _SAYS[_RETRIEVAL], _PAPER[_RETRIEVAL], here, answer, _RULES[_RETRIEVAL]
    )


def _told(share: Interval) -> str:
    mean, low, high = percent(share)
    return told(mean, low, high, digits=0, unit="%")
