"""Does a query depend on the page? Its variance over pages against that over questions.

Every keyword question is put to every page that keyword questions are asked about, so a table of
questions by pages holds one query per cell. With the squared distance as measure, unbiased:

    over pages      variance over pages of one question, mean over questions
    over questions  variance over questions on one page, mean over pages
    share           over pages / (over pages + over questions); 0 for a query that ignores the page
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from circuitsearch.core.components import SubLayer
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.teacher.documents.collate import Batch, Example, collate

from ...ablation import Progress
from ...patching.queries import queries, stream_before
from ...tables import draw_weights
from ..shared import Interval
from .keyword_questions import KeywordQuestions
from .query_losses import answers_at

__all__ = ["QueryTable", "Variances", "query_table"]

_QUESTIONS, _PAGES, _DRAWS = 12, 24, 1000
"""Most questions and pages of the table, and draws of its intervals."""


@dataclass(frozen=True)
class Variances:
    """Variances of one head's query, or of all heads' together.

    Attributes:
        pages: over pages.
        questions: over questions.
        share: of the first in both, with its interval.
    """

    pages: float
    questions: float
    share: Interval


@dataclass(frozen=True, eq=False)
class QueryTable:
    """The queries at the last prompt token of Q questions on P pages.

    Attributes:
        questions: their texts.
        documents: [P] document of each page.
        values: [P, Q, H, hd].
    """

    questions: tuple[str, ...]
    documents: tuple[str, ...]
    values: np.ndarray

    def variances(self, head: int | None, seed: int) -> Variances:
        """Return the variances of one head, or of all for None.

        Args:
            head: the head.
            seed: of the interval, a bootstrap that draws documents.
        """
        heads = slice(None) if head is None else slice(head, head + 1)
        values = self.values[:, :, heads].reshape(len(self.values), len(self.questions), -1)
        pages, questions = _variances(values, np.ones((1, len(values))))
        low: float | None = None
        high: float | None = None
        if len(set(self.documents)) > 1:
            drawn = draw_weights(self.documents, _DRAWS, seed)
            # a draw of a single page, over and over, has no variance over pages
            drawn = drawn[(drawn > 0).sum(axis=1) > 1]
            low, high = np.percentile(_share(*_variances(values, drawn)), (2.5, 97.5)).tolist()
        share = float(_share(pages, questions)[0])
        return Variances(float(pages[0]), float(questions[0]), (share, low, high))


def query_table(
    decoder: ResidualDecoder,
    asked: KeywordQuestions,
    target: SubLayer,
    progress: Progress,
) -> QueryTable | str:
    """Put every keyword question to every page, or say why that tells nothing.

    Args:
        decoder: the view.
        asked: the keyword questions; of many, the first 12 texts and 24 pages.
        target: the cross-attention whose queries are compared.
        progress: called with ("queries on other pages", pages done, pages).
    """
    sample = asked.sample
    by_text = {row.question.text: row for row in reversed(sample.rows)}
    by_page = {row.page: d for row, d in zip(sample.rows, sample.documents, strict=True)}
    texts = sorted(by_text, key=lambda text: (by_text[text].page, text))[:_QUESTIONS]
    pages = sorted(by_page)[:_PAGES]
    if len(texts) < 2 or len(pages) < 2:
        return (
            f"there are {len(texts)} different keyword questions and {len(pages)} pages, and at "
            "least two of both are needed"
        )
    batch = _prompts([by_text[text] for text in texts], sample.pad_id)
    found = []
    with torch.no_grad():
        for done, page in enumerate(pages):
            states = sample.states[page][None]
            ids = batch.ids.to(states.device)
            memory = decoder.memory(states, torch.zeros_like(ids[:, 0]))
            query = queries(decoder, target, stream_before(decoder, ids, memory, target))
            found.append(query[torch.arange(len(ids)), :, answers_at(batch)])
            progress("queries on other pages", done + 1, len(pages))
    values = torch.stack(found).double().cpu().numpy()
    return QueryTable(tuple(texts), tuple(by_page[page] for page in pages), values)


def _prompts(rows: Sequence[Example], pad: int) -> Batch:
    """Return the prompts alone, padded behind their ends, as decoder inputs."""
    # collation cuts the last token off, so one token of the answer stays
    cut = [Example(0, row.question, row.ids[: row.prompt + 1], row.prompt) for row in rows]
    return collate(cut, pad)


def _variances(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the variances over pages and over questions, each [D].

    Args:
        values: [P, Q, n].
        weights: [D, P] how often each page is drawn.
    """
    # half the mean squared distance of two different pages is the unbiased variance; a page drawn
    # twice makes no pair with itself, which would pull the draws' variances down
    apart = np.array([[((a - b) ** 2).sum() for b in values] for a in values]) / values.shape[1]
    count = weights.sum(axis=1)
    pairs = count**2 - (weights**2).sum(axis=1)
    over_pages = ((weights @ apart) * weights).sum(axis=1) / (2 * pairs)
    per_page = values.var(axis=1, ddof=1).sum(axis=1)
    return over_pages, weights @ per_page / count


def _share(pages: np.ndarray, questions: np.ndarray) -> np.ndarray:
    """Return the pages' share of both; 0 where nothing varies."""
    total = pages + questions
    found: np.ndarray = np.divide(pages, total, out=np.zeros_like(total), where=total > 0)
    return found
