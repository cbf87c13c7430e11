"""Samples with counterfactuals: every question beside what it is compared with.

Clean and counterfactual run differ in the page or in the prompt, never in the answer they are
forced through: the counterfactual run also reads the *clean answer* as its decoder input. What a
component gives then differs only by what the page or the question says, at every position.

The foils are the counterfactual answer's tokens, position by position. Under this convention a
foil is a fair rival of the clean token at the first answer token and, where the two answers begin
alike, up to the first token at which they differ (`metrics.first_difference`). Behind it both runs
go on from the clean answer, after which the foil need not be what the counterfactual page calls
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from circuitsearch.core.errors import ConfigError, DataError, integer_problems, raise_together
from circuitsearch.core.files import content_hash
from circuitsearch.teacher.documents.collate import Example, Tokens, collate
from circuitsearch.teacher.documents.pairs import Pair, semantic_pairs
from circuitsearch.teacher.documents.records import Page, PageSource
from circuitsearch.teacher.documents.records import fingerprint as pages_fingerprint
from circuitsearch.teacher.loading import Teacher

from .sample import Other, Sample, encoded

__all__ = ["make_pair_sample"]


def make_pair_sample(
    teacher: Teacher,
    pages: Sequence[Page],
    kind: str,
    *,
    seed: int | str = 0,
    batch_size: int = 16,
    encode_size: int = 4,
) -> Sample:
    """Pair questions with counterfactuals, encode both sides' pages and batch them.

    Questions without a counterfactual are left out; `semantic_pairs` says which and why. Every
    page, clean or edited, is encoded once, and equal pages share their states.

    Memory: (G + G') * N * E * 4 bytes of states for G clean and G' edited pages, G' at most the
    number of questions and 0 for the kind `question` (Donut at 2560 x 1920: 20 MB per page).

    Args:
        teacher: the teacher that encodes and whose tokenizer decides which lengths are equal.
        pages: pages with questions.
        kind: one of `documents.pairs.PAIR_KINDS`.
        seed: seed of the counterfactuals.
        batch_size: rows per batch.
        encode_size: pages per encoder pass.

    Returns:
        A sample whose `others` has one entry per batch. Its page states are those of the pages
        with at least one pair, in the order of `pages`.

    Raises:
        ConfigError: a size below 1, or an unknown kind.
        DataError: no question has a counterfactual.
    """
    problems = integer_problems("batch_size", batch_size, 1)
    problems += integer_problems("encode_size", encode_size, 1)
    raise_together(problems, ConfigError, "Pair sample")
    pairs = semantic_pairs(pages, kind, teacher.tokens, seed).pairs
    used = sorted({pair.page for pair in pairs})
    sources = [pages[page].source for page in used] + [pair.other_source for pair in pairs]
    states, places = _encode_distinct(teacher, sources, encode_size)
    firsts = places[: len(used)]
    local = {page: index for index, page in enumerate(used)}
    content = [pair.fingerprint() for pair in pairs]
    known = [teacher.fingerprint, pages_fingerprint(pages), kind, seed, batch_size, content]
    sample = Sample(
        rows=tuple(_row(pair, teacher.tokens, local[pair.page]) for pair in pairs),
        states=_rows_of(states, firsts),
        documents=tuple(pages[pair.page].document for pair in pairs),
        batch_size=batch_size,
        pad_id=teacher.tokens.pad_id,
        fingerprint=content_hash(known),
    )
    blocks = [slice(start, start + batch_size) for start in range(0, len(pairs), batch_size)]
    others = (
        _other(pairs[b], sample.rows[b], teacher.tokens, states, places[len(used) :][b])
        for b in blocks
    )
    return replace(sample, others=tuple(others))


def _encode_distinct(
    teacher: Teacher, sources: Sequence[PageSource], size: int
) -> tuple[Tensor, list[int]]:
    """Encode every distinct page once.

    Returns:
        [D, N, E] states of the distinct pages in order of first appearance, and for each source
        its index there.
    """
    distinct: dict[str, PageSource] = {}
    keys = [source.fingerprint() for source in sources]
    for key, source in zip(keys, sources, strict=True):
        distinct.setdefault(key, source)
    index = {key: i for i, key in enumerate(distinct)}
    return encoded(teacher, list(distinct.values()), size), [index[key] for key in keys]


def _rows_of(states: Tensor, places: Sequence[int]) -> Tensor:
    """Return states [len(places), N, E]; a view where the places follow each other."""
    first, count = places[0], len(places)
    if list(places) == list(range(first, first + count)):
        return states[first : first + count]
    return states[list(places)]


def _row(pair: Pair, tokens: Tokens, page: int) -> Example:
    """Return the clean example."""
    prompt = tokens.prompt_ids(pair.question.text)
    ids = prompt + tokens.answer_ids(pair.question.answers[0])
    return Example(page, pair.question, tuple(ids), len(prompt))


def _other(
    pairs: Sequence[Pair],
    rows: Sequence[Example],
    tokens: Tokens,
    states: Tensor,
    places: Sequence[int],
) -> Other:
    """Return the counterfactual side of one batch.

    Raises:
        DataError: prompt or answer of a counterfactual has another length than the clean one.
    """
    wanted = sorted(set(places))
    forced, foiled = [], []
    for pair, row, place in zip(pairs, rows, places, strict=True):
        prompt = tokens.prompt_ids(pair.other_question.text)
        foil = tokens.answer_ids(pair.other_question.answers[0])
        lengths = len(prompt), len(prompt) + len(foil)
        if lengths != (row.prompt, len(row.ids)):
            raise DataError(
                f"Pair of question {pair.question.id!r}: the clean side has {row.prompt} prompt "
                f"tokens of {len(row.ids)}, the counterfactual {lengths[0]} of {lengths[1]}; "
                "allowed are equal lengths only, since values are carried position by position"
            )
        page, answer = wanted.index(place), row.ids[row.prompt :]
        forced.append(Example(page, pair.other_question, (*prompt, *answer), row.prompt))
        foiled.append(Example(page, pair.other_question, (*prompt, *foil), row.prompt))
    read = collate(forced, tokens.pad_id)
    return Other(
        ids=read.ids.to(states.device),
        states=_rows_of(states, wanted),
        pages=read.pages.to(states.device),
        foils=collate(foiled, tokens.pad_id).labels.to(states.device),
    )
