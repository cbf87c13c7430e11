"""Keyword questions: those that name a kind of thing and no key printed beside it.

"What is the date?" can be answered on a page that nowhere prints the word "date": the form of the
value has to tell. Where the pages say which questions are of that family (`keyword`, as rendered
pages do) only those count; otherwise every question that names a generic field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from circuitsearch.core.files import content_hash
from circuitsearch.teacher.documents.synthetic import KEYWORDS
from circuitsearch.teacher.loading import Teacher

from ...keywords import Keywords, question_words
from ...sample import Sample

__all__ = ["GENERIC_FIELDS", "NO_KEYWORDS", "KeywordQuestions", "keyword_questions"]

GENERIC_FIELDS: tuple[str, ...] = (
    *KEYWORDS,
    *("address", "amount", "author", "city", "country", "currency", "due", "fax", "name", "number"),
    *("page", "place", "price", "sender", "signature", "subject", "subtotal", "tax", "title"),
    *("topic", "vendor", "year"),
)
"""Words that name a kind of thing, which a page need not print for it to be found."""

NO_KEYWORDS = "no question asks for a generic field such as a date or a total"
"""Why keyword questions cannot be asked about."""

_FAMILY = "keyword"


@dataclass(frozen=True)
class KeywordQuestions:
    """The keyword questions of a sample.

    Attributes:
        sample: the questions alone, with the pages of the whole sample.
        find: tells the positions of an example's keyword tokens.
        per_question: [n] number of keyword tokens of each question.
    """

    sample: Sample
    find: Keywords
    per_question: tuple[int, ...]

    @property
    def documents(self) -> tuple[str, ...]:
        """Document of each question."""
        return self.sample.documents

    @property
    def tokens(self) -> float:
        """Mean number of tokens that the keywords of a question are cut into."""
        return sum(self.per_question) / len(self.per_question)


def keyword_questions(teacher: Teacher, sample: Sample) -> KeywordQuestions | None:
    """Return the keyword questions of a sample, None when it has none.

    Args:
        teacher: whose tokenizer cuts the questions.
        sample: questions of any kind.
    """
    find = question_words(teacher.tokens.tokenizer, GENERIC_FIELDS)
    named = any(row.question.family == _FAMILY for row in sample.rows)
    counts = {
        i: len(find(row))
        for i, row in enumerate(sample.rows)
        if not named or row.question.family == _FAMILY
    }
    chosen = [i for i, count in counts.items() if count]
    if not chosen:
        return None
    return KeywordQuestions(_part(sample, chosen), find, tuple(counts[i] for i in chosen))


def _part(sample: Sample, chosen: Sequence[int]) -> Sample:
    """Return a sample of some of the questions, in their order."""
    return replace(
        sample,
        rows=tuple(sample.rows[i] for i in chosen),
        documents=tuple(sample.documents[i] for i in chosen),
        fingerprint=content_hash([sample.fingerprint, "questions", list(chosen)]),
        others=None,
    )
