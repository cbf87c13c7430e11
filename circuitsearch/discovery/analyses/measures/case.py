"""Questions as they are cased and in lower case, read and answered; see `case`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from circuitsearch.core.components import SubLayer
from circuitsearch.core.files import content_hash, seed_from
from circuitsearch.discovery.keywords import question_words
from circuitsearch.discovery.lens.case import CaseHits, case_hits
from circuitsearch.discovery.lens.reprojection import ReprojectionOptions, nearest_tokens
from circuitsearch.discovery.patching.components import effects, sample_metric
from circuitsearch.discovery.sample import Sample
from circuitsearch.teacher.documents.collate import examples, unusable
from circuitsearch.teacher.documents.records import Page, Question
from circuitsearch.teacher.documents.records import fingerprint as pages_fingerprint
from circuitsearch.teacher.tokens import TeacherTokens

from ..material import Material
from ..shared import Averages, Interval, mean_interval, share_interval

__all__ = ["NORMS", "Losses", "Read", "losses_of", "recased", "tokens_read"]

NORMS = {"final norm": ReprojectionOptions(), "no norm": ReprojectionOptions(norm="none")}
"""How vectors are read as tokens; the default reading comes first."""


@dataclass(frozen=True)
class Read:
    """What the K word tokens of the questions read as, under one norm.

    Attributes:
        hits: what each reads as, at every place.
        documents: [K] document of each.
        seed: of the bootstrap's draws.
    """

    hits: CaseHits
    documents: tuple[str, ...]
    seed: int

    def share(self, hits: np.ndarray, chosen: np.ndarray) -> Interval | tuple[None, None, None]:
        """Return the share of hits among chosen tokens, [K] both; nothing where none is chosen."""
        if not chosen.any():
            return None, None, None
        return share_interval(hits[chosen], self._documents(chosen), self.seed)

    def rise(self, sublayer: SubLayer) -> Interval | None:
        """Return how much more of the cased tokens read as lower case behind it than in front."""
        if not self.hits.cased.any():
            return None
        behind = self.hits.places.index(sublayer.name)
        lowered = self.hits.lowered[:, self.hits.cased].astype(np.float64)
        documents = self._documents(self.hits.cased)
        return mean_interval(lowered[behind] - lowered[behind - 1], documents, self.seed)

    def _documents(self, chosen: np.ndarray) -> list[str]:
        return [self.documents[i] for i in np.flatnonzero(chosen)]


@dataclass(frozen=True)
class Losses:
    """Losses of the same questions under both casings, nats per answer token.

    Attributes:
        averages: of the questions.
        cased: [n] loss of the whole model, questions as they are cased.
        lower: [n] the same, questions in lower case.
        cased_cost: [n] rise without the first feed-forward, as they are cased; None without one.
        lower_cost: [n] the same in lower case.
    """

    averages: Averages
    cased: np.ndarray
    lower: np.ndarray
    cased_cost: np.ndarray | None
    lower_cost: np.ndarray | None

    def differences(self) -> dict[str, tuple[str, np.ndarray]]:
        """Return paired differences [n] with their names, by what they judge."""
        cased, lower = self.cased, self.lower
        found = {"neutral": ("as cased - lower case, whole model", cased - lower)}
        if self.cased_cost is None or self.lower_cost is None:
            return found
        cost, lower_cost = self.cased_cost, self.lower_cost
        without = cased + cost, lower + lower_cost
        return {
            **found,
            "cost": ("what skipping costs as cased", cost),
            "lower cost": ("what skipping costs in lower case", lower_cost),
            "skipped": ("as cased - lower case, feed-forward skipped", without[0] - without[1]),
            "needed": ("what skipping costs: as cased - lower case", cost - lower_cost),
            "replaced": (
                "lower case, feed-forward skipped - as cased, whole model",
                without[1] - cased,
            ),
        }


def recased(material: Material) -> tuple[Sample, Sample] | None:
    """Return the questions that have case, as they are cased and in lower case.

    Both samples hold the same questions about the same pages; nothing is encoded again. A teacher
    that lowers questions by itself is given them as they are cased here.

    Returns:
        None when no prompt changes with the case of its question.
    """
    format_ = replace(material.teacher.tokens.prompt, lowercase_question=False)
    tokens = replace(material.teacher.tokens, prompt=format_)
    pages = [
        replace(page, questions=tuple(q for q in page.questions if _has_case(q, tokens)))
        for page in material.pages
    ]
    if not any(page.questions for page in pages):
        return None
    return (
        _asked(material, pages, tokens, str),
        _asked(material, pages, tokens, str.lower),
    )


def tokens_read(material: Material, sample: Sample) -> dict[str, Read]:
    """Read the word tokens of all questions at every place, under each norm.

    Returns:
        By norm; empty where no question has a word token.
    """
    view, tokenizer = material.view, material.teacher.tokens.tokenizer
    words = question_words(tokenizer)
    if not any(words(row) for row in sample.rows):
        return {}
    seed = seed_from("case", sample.fingerprint, material.seed)
    found = {}
    for norm, options in NORMS.items():
        reading = nearest_tokens(view, sample, options, positions=words, progress=material.progress)
        documents = tuple(sample.documents[i] for i in reading.examples)
        found[norm] = Read(case_hits(reading, tokenizer), documents, seed)
    return found


def losses_of(material: Material, cased: Sample, lower: Sample, first: SubLayer | None) -> Losses:
    """Measure both samples, with and without the first feed-forward."""
    view, costs = material.view, []
    for sample in (cased, lower):
        found: Mapping[str, np.ndarray] = {}
        if first is not None:
            found = effects(view, sample, [first], progress=material.progress)
        costs.append(None if first is None else found[first.name])
    return Losses(
        averages=Averages.of(cased, seed_from("case", cased.fingerprint, material.seed)),
        cased=sample_metric(view, cased),
        lower=sample_metric(view, lower),
        cased_cost=costs[0],
        lower_cost=costs[1],
    )


def _has_case(question: Question, tokens: TeacherTokens) -> bool:
    """Whether the prompt changes with the question's case, and both forms can be asked."""
    lower = replace(question, text=question.text.lower())
    if tokens.prompt_ids(question.text) == tokens.prompt_ids(lower.text):
        return False
    return unusable(question, tokens) is None and unusable(lower, tokens) is None


def _asked(
    material: Material,
    pages: list[Page],
    tokens: TeacherTokens,
    recase: Callable[[str], str],
) -> Sample:
    """Return the pages' questions, recased, on the states that are encoded already."""
    changed = [
        replace(page, questions=tuple(replace(q, text=recase(q.text)) for q in page.questions))
        for page in pages
    ]
    # the encoded states are those of the pages that had questions to begin with
    used = [index for index, page in enumerate(material.pages) if page.questions]
    place = {page: index for index, page in enumerate(used)}
    rows = examples(changed, tokens)
    whole = material.sample
    return replace(
        whole,
        rows=tuple(replace(row, page=place[row.page]) for row in rows),
        documents=tuple(changed[row.page].document for row in rows),
        fingerprint=content_hash([whole.fingerprint, pages_fingerprint(changed)]),
    )
