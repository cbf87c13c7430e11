"""What the query holds when a value is looked up by its key (Proposition 5, Figure 7).

Donut-MINT (arXiv 2509.26235) says that the last cross-attention's query holds mostly the place of
the value, found before by another cross-attention that attends to the key on the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from circuitsearch.core.findings import Answer, Finding, Verdict

from .material import Material
from .measures.retrieval import HYPOTHESES, RetrievalStudy, retrieval_study, share_of, shares
from .shared import cannot, counted, judged, landmarks, told
from .tables.retrieval import DEFAULT, retrieval_chart, retrieval_tables

__all__ = ["retrieval_analysis"]

_HALF = 0.5

_ASKS = (
    "Asked 'What is the city?' about a page with the line 'city: Oslo', what does the model look "
    "for when it is about to answer: a place on the page that it has found before, the meaning of "
    "the key, or an answer that it knows already? A query that holds a place needs an earlier "
    "cross-attention that finds the key; a student without it cannot look values up."
)
_METHOD = (
    "Pages of four 'key: value' lines are made for this, and those that the teacher answers right "
    "are kept. On a shuffled page the asked key stands elsewhere with another value, and a third "
    "value stands in its old place; the paper's words could also mean that only values are "
    "permuted, but then place and meaning name the same value (a row of its own). The query of the "
    "last cross-attention at the last prompt token, all heads, is taken from the run on the clean "
    "page and put into the run on the shuffled page. The answer's first token tells what is found: "
    "the value in the old place (place), the key's new value (meaning), its old value (memory), or "
    "anything else (failure). Values on a page start with different tokens, so one token tells "
    "them apart with any tokenizer; it is also the only one that this query decides directly. "
    "Three vocabularies are the paper's, with keys and values of one kind; three have fields of a "
    "form as keys. Controls: the shuffled page's own query, and none. Intervals: 95 %, Wilson's "
    "for shares of pages, which are independent draws, otherwise a bootstrap over pages."
)
_CLAIMS: Mapping[str, str] = {
    "place": "The query holds the value's place more than the key's meaning",
    "meaning": "Asked with the old query, it says the key's new value more than memory or failure",
    "key": "Every cross-attention but the first attends to the key on the page",
    "reading": "Looking a value up needs a cross-attention before the last",
}
_PAPER: Mapping[str, str] = {
    "place": "place against meaning: 53 to 31 % (colours), 40 to 26 (nouns), 37 to 45 (numbers)",
    "meaning": "meaning against the other two: 31 to 16 % (colours), 26 to 33 (nouns), 45 to 18",
    "key": "C1, C2 and C3 attend to patches associated with the prompt (no number given)",
    "reading": "one cross-attention reads the key, a second fetches the value (no number given)",
}
_WORTH = (
    "; open too where it is not sure that no query finds the key's new value less often than the "
    "shuffled page's own query does, and not asked where it finds it as often (pages on which one "
    "of the two finds it count)"
)
_RULES: Mapping[str, str] = {
    "place": (
        "of the answers that are place or meaning, the share that are place, all vocabularies "
        "together: shown if the whole interval is above 0.5, not shown if it is at or below, open "
        f"otherwise{_WORTH}"
    ),
    "meaning": (
        "of the answers that are not place, the share that are meaning, all vocabularies together: "
        "shown if the whole interval is above 0.5, not shown if it is at or below, open "
        f"otherwise{_WORTH}"
    ),
    "key": (
        "share of attention on the key's patches minus their share of the page, mean over heads: "
        "shown if the whole interval is above 0 for each cross-attention but the first, partly if "
        "for some, not shown if for each it is at or below 0, open otherwise"
    ),
    "reading": (
        "share of the pages still answered right without any cross-attention but the last: shown "
        f"if the whole interval is below {_HALF}, not shown if it is at or above, open otherwise"
    ),
}


def retrieval_analysis(material: Material) -> Finding:
    """Exchange queries between pages of keys and values, and classify the answers.

    Args:
        material: its teacher is asked about pages made for this; its own pages play no part.

    Returns:
        Shares of four kinds of answer by vocabulary, attention on key and value, accuracy without
        cross-attentions, and four verdicts on Proposition 5 (Figure 7).
    """
    target = landmarks(material.view.sublayers).last_cross
    if target is None or material.teacher.prompt.parses:
        why = (
            "the decoder has no cross-attention"
            if target is None
            else "this teacher reads whole pages and answers no questions"
        )
        return _finding(0, verdicts=tuple(_cannot(claim, why) for claim in _CLAIMS))
    study = retrieval_study(material, target)
    if not study.usable:
        drawn = counted(sum(one.drawn for one in study.answered), "pages")
        why = f"the teacher answers none of the pages right; {drawn}"
        verdicts = tuple(_cannot(claim, why) for claim in _CLAIMS)
        return _finding(0, tables=retrieval_tables(study), verdicts=verdicts)
    return _finding(
        len(study.names),
        tables=retrieval_tables(study),
        charts=(retrieval_chart(study),),
        verdicts=(_place(study), _meaning(study), _key(study), _reading(study)),
        notes=_notes(study),
        values=_values(study),
    )


def _finding(examples: int, **parts: Any) -> Finding:
    """Return the finding with its words filled in."""
    title = "What a query holds when a value is looked up"
    return Finding("retrieval", title, _ASKS, _METHOD, examples, **parts)


def _cannot(claim: str, why: str) -> Verdict:
    """Return a verdict that cannot be reached."""
    name = f"Proposition 5, {claim}"
    return cannot(name, _CLAIMS[claim], _PAPER[claim], why, _RULES[claim])


def _verdict(claim: str, here: str, answer: Answer) -> Verdict:
    name = f"Proposition 5, {claim}"
    return Verdict(name, _CLAIMS[claim], _PAPER[claim], here, answer, _RULES[claim])


def _place(study: RetrievalStudy) -> Verdict:
    """Judge place against meaning."""
    return _more(study, "place", HYPOTHESES.index("place"), ("place", "meaning"))


def _meaning(study: RetrievalStudy) -> Verdict:
    """Judge meaning against memory and failure."""
    return _more(study, "meaning", HYPOTHESES.index("meaning"), HYPOTHESES[1:])


def _more(study: RetrievalStudy, claim: str, one: int, among: Sequence[str]) -> Verdict:
    """Judge whether one hypothesis makes up more than half of the answers that fit some."""
    classes = study.classes(DEFAULT)
    known = classes[np.isin(classes, [HYPOTHESES.index(name) for name in among])]
    each = ", ".join(
        f"{name} {told(*share)}" for name, share in zip(HYPOTHESES, shares(classes), strict=True)
    )
    here = f"{each}; {counted(len(classes), 'pages')}"
    worth = _worth(study)
    if worth == "not shown":
        return _cannot(claim, f"no query at all finds the new value as often: {here}")
    if not len(known):
        return _verdict(claim, here, "open")
    share = share_of(known == one)
    here = f"{told(*share)} of {len(known)} answers; {here}"
    return _verdict(claim, here, judged(*share[1:], _HALF) if worth == "shown" else "open")


def _worth(study: RetrievalStudy) -> Answer:
    """Return whether the shuffled page's own query finds the new value more often than none."""
    meaning = HYPOTHESES.index("meaning")
    own, even = (study.classes(run) == meaning for run in ("pairs", "even>pairs"))
    only = own[own != even]
    return judged(*share_of(only)[1:], _HALF) if len(only) else "not shown"


def _key(study: RetrievalStudy) -> Verdict:
    """Judge attention on the key."""
    crosses = study.crosses[1:]
    if not crosses or not study.looked:
        why = next((one.attention for one in study.usable if one.attention), "")
        return _cannot("key", why or "the decoder has one cross-attention only")
    above, each = [], []
    for cross in crosses:
        found, even = study.looks(cross, "key")
        # even attention in float32 is off by rounding, which must not count as above or below
        above.append(judged(*study.interval((found - even).round(6))[1:], 0.0))
        each.append(f"{cross} {told(*study.interval(found), digits=3)}")
    mixed: Answer = "partly" if "shown" in above else "open"
    answer = above[0] if len(set(above)) == 1 else mixed
    even = study.looks(crosses[0], "key")[1].mean()
    here = f"{', '.join(each)} on the key, with even attention {even:.3f}"
    return _verdict("key", f"{here}; {counted(len(study.names), 'pages')}", answer)


def _reading(study: RetrievalStudy) -> Verdict:
    """Judge whether the last cross-attention is enough."""
    earlier = study.crosses[:-1]
    if not earlier:
        return _cannot("reading", "the decoder has one cross-attention only")
    share = study.interval(study.right(" ".join(earlier)))
    each = ", ".join(f"{name} {told(*study.interval(study.right(name)))}" for name in study.skipped)
    here = (
        f"{told(*share)} still right without {' '.join(earlier)}; one by one and together: {each}; "
        f"{counted(len(study.names), 'pages')}"
    )
    return _verdict("reading", here, judged(*share[1:], _HALF, above=False))


def _notes(study: RetrievalStudy) -> tuple[str, ...]:
    """Return what a reader has to know to judge the numbers."""
    target = study.crosses[-1]
    notes = [
        "The published shares belong to another, larger teacher and to pages that are not public.",
        f"The stream that {target} adds to stays that of the page which is read, so part of an "
        "answer may bypass the query; the control without a query shows how much.",
        f"Behind {target} no position reads another, so exchanging the queries of all positions "
        "gives the same first token and has no row of its own.",
    ]
    meaning = HYPOTHESES.index("meaning")
    old, none = (float((study.classes(r) == meaning).mean()) for r in (DEFAULT, "even>pairs"))
    if none >= old > 0:
        notes.append(
            f"Without any query the key's new value is said on {none:.0%} of the pages, with the "
            f"clean page's query on {old:.0%}: what follows the meaning comes past the query of "
            f"{target}, not through it."
        )
    poor = [one.vocabulary.name for one in study.answered if not one.names]
    if poor:
        notes.append(f"No page is answered right with {', '.join(poor)}.")
    return tuple(notes)


def _values(study: RetrievalStudy) -> dict[str, Any]:
    """Return the judged shares by vocabulary."""
    return {
        one.vocabulary.name: {
            "pages": len(one.names),
            **{name: share[0] for name, share in zip(HYPOTHESES, found, strict=True)},
        }
        for one in study.usable
        if one.classes is not None
        for found in [shares(one.classes[DEFAULT])]
    }
