"""Everything that is measured on keyword questions beside paths; see `keywords`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from circuitsearch.core.components import SubLayer
from circuitsearch.core.files import seed_from

from ..material import Material
from ..shared import Interval, counted, mean_interval
from .keyword_flow import KeywordFlow, keyword_flow
from .keyword_questions import KeywordQuestions
from .place_shares import place_shares
from .query_losses import query_losses
from .query_variance import QueryTable, query_table
from .text_places import answer_place

__all__ = ["KeywordStudy", "Looks", "keyword_study"]


@dataclass(frozen=True, eq=False)
class Looks:
    """Attention of the target on the answer's place.

    Attributes:
        shares: [m, H] share of attention there, for the m questions whose place is known.
        even: [m] share of the page's encoder tokens that are there.
        documents: [m] document of each.
    """

    shares: np.ndarray
    even: np.ndarray
    documents: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class KeywordStudy:
    """What was measured.

    Attributes:
        asked: the n keyword questions.
        target: the cross-attention whose query is studied.
        flow: attention to the keyword, and what cutting it costs.
        losses: [n] loss of the first answer token by the query's origin (`query_losses`).
        queries: the queries of all questions on all pages, or why there are none.
        looks: attention on the answer's place, or why it cannot be known.
        seed: of the intervals.
    """

    asked: KeywordQuestions
    target: SubLayer
    flow: KeywordFlow
    losses: Mapping[str, np.ndarray]
    queries: QueryTable | str
    looks: Looks | str
    seed: int

    @property
    def count(self) -> str:
        """How many questions and documents."""
        return counted(len(self.asked.documents), "questions", self.asked.documents)

    def interval(self, values: np.ndarray) -> Interval:
        """Mean over questions with its interval over documents; values that are NaN are left out.

        Args:
            values: [n], at least one of them a number.
        """
        known = np.isfinite(values)
        documents = np.array(self.asked.documents)[known].tolist()
        return mean_interval(values[known], documents, self.seed)

    def look(self, values: np.ndarray) -> Interval:
        """The same for values [m] of the questions whose answer's place is known."""
        documents = () if isinstance(self.looks, str) else self.looks.documents
        return mean_interval(values, documents, self.seed)


def keyword_study(material: Material, asked: KeywordQuestions, target: SubLayer) -> KeywordStudy:
    """Measure everything.

    Args:
        material: teacher and pages.
        asked: the keyword questions of `material.sample`.
        target: a cross-attention with at least one self-attention in front.
    """
    view = material.view
    return KeywordStudy(
        asked=asked,
        target=target,
        flow=keyword_flow(view, asked, target, material.progress),
        losses=query_losses(view, asked.sample, target),
        queries=query_table(view, asked, target, material.progress),
        looks=_looks(material, asked, target),
        seed=seed_from("keywords", asked.sample.fingerprint, material.seed),
    )


def _looks(material: Material, asked: KeywordQuestions, target: SubLayer) -> Looks | str:
    """Return the attention on the answer's place where that is known."""
    sample = asked.sample
    pages = [page for page in material.pages if page.questions]
    tokens = sample.states.shape[1]
    found = [
        answer_place(material.teacher, pages[row.page], row.question, tokens) for row in sample.rows
    ]
    reasons = [place for place in found if isinstance(place, str)]
    known = [i for i, place in enumerate(found) if not isinstance(place, str)]
    if not known:
        return reasons[0]
    places = [() if isinstance(place, str) else place for place in found]
    shares = place_shares(material.view, sample, [target], {"answer": places})
    even = np.array([len(places[i]) / tokens for i in known])
    documents = tuple(sample.documents[i] for i in known)
    return Looks(shares[target.name, "answer"][known], even, documents)
