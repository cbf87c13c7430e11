"""The sample that discovery runs on: questions in batches, their pages encoded once.

The encoder is frozen and by far the dearest part, so every page passes through it a single time.
Examples stay in page order and batches are consecutive, so the pages of a batch are a slice of one
tensor: no copies, and several questions about one page share its keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.core.files import content_hash
from circuitsearch.teacher.documents.collate import Batch, Example, collate, examples
from circuitsearch.teacher.documents.records import Page, PageSource, Question
from circuitsearch.teacher.documents.records import fingerprint as pages_fingerprint
from circuitsearch.teacher.loading import Teacher

__all__ = ["Other", "Sample", "encoded", "make_sample", "token_sample"]


@dataclass(frozen=True)
class Other:
    """The counterfactual side of one batch: what the decoder reads instead, row by row.

    Attributes:
        ids: [B, T] decoder inputs, of the shape of the clean ones.
        states: [P', N, E] encoder states.
        pages: [B] which of them each row reads.
        foils: [B, T] the counterfactual answer's tokens where the clean labels are, -100 elsewhere.
    """

    ids: Tensor
    states: Tensor
    pages: Tensor
    foils: Tensor


@dataclass(frozen=True)
class Sample:
    """Encoded questions.

    Attributes:
        rows: examples in page order; `page` indexes `states`.
        states: [G, N, E] encoder states, one entry per page that is asked about.
        documents: document of each example, for statistics clustered by document.
        batch_size: rows per batch.
        pad_id: padding token.
        fingerprint: hash of teacher, pages and batch size.
        others: counterfactual of each batch, for the ablation `pair`; None when there is none.
    """

    rows: tuple[Example, ...]
    states: Tensor
    documents: tuple[str, ...]
    batch_size: int
    pad_id: int
    fingerprint: str
    others: tuple[Other, ...] | None = None

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.rows)

    @cached_property
    def batches(self) -> tuple[tuple[Batch, Tensor], ...]:
        """Batches with the states [P, N, E] of their pages; `Batch.pages` [B] indexes these."""
        made = []
        for start in range(0, len(self.rows), self.batch_size):
            batch, pages = self._block(start)
            made.append((batch, self.states[pages.start : pages.stop]))
        return tuple(made)

    @cached_property
    def swapped(self) -> tuple[Tensor, ...]:
        """For each batch, the states of other pages: each page gives way to the next one.

        The same tokens reading these states are the counterfactual of `resample`.

        Raises:
            DataError: the sample has one page only.
        """
        if len(self.states) < 2:
            raise DataError(
                "Resample ablation: the sample has one page, and at least two are needed to read "
                "another page instead; add pages or choose zero or mean"
            )
        made = []
        for start in range(0, len(self.rows), self.batch_size):
            _, pages = self._block(start)
            others = [(page + 1) % len(self.states) for page in pages]
            made.append(self.states[others])
        return tuple(made)

    def foils(self, index: int) -> Tensor | None:
        """Return the counterfactual answers [B, T] of a batch, None when there are none."""
        return None if self.others is None else self.others[index].foils

    def _block(self, start: int) -> tuple[Batch, range]:
        """Return one batch with local page indices, and the pages it covers."""
        rows = self.rows[start : start + self.batch_size]
        first, last = rows[0].page, rows[-1].page
        batch = collate(rows, self.pad_id)
        device = self.states.device
        batch = replace(
            batch,
            pages=(batch.pages - first).to(device),
            ids=batch.ids.to(device),
            labels=batch.labels.to(device),
        )
        return batch, range(first, last + 1)


def make_sample(
    teacher: Teacher, pages: Sequence[Page], batch_size: int = 16, *, encode_size: int = 4
) -> Sample:
    """Encode pages and batch their questions.

    Memory: G * N * E * 4 bytes of states (Donut at 2560 x 1920: 20 MB per page).

    Args:
        teacher: the teacher that encodes.
        pages: pages with questions; pages without any are left out.
        batch_size: rows per batch.
        encode_size: pages per encoder pass.

    Raises:
        ConfigError: a size below 1.
        DataError: no question is there, or one is longer than the teacher allows.
    """
    for name, size in (("batch_size", batch_size), ("encode_size", encode_size)):
        if size < 1:
            raise ConfigError(f"{name}: got {size}, allowed are integers from 1")
    rows = examples(pages, teacher.tokens)
    if not rows:
        raise DataError(
            f"Sample: none of the {len(pages)} pages has a question; give pages that do"
        )
    used = sorted({row.page for row in rows})
    states = encoded(teacher, [pages[i].source for i in used], encode_size)
    place = {page: index for index, page in enumerate(used)}
    key = [teacher.fingerprint, pages_fingerprint(pages), batch_size]
    return Sample(
        rows=tuple(replace(row, page=place[row.page]) for row in rows),
        states=states,
        documents=tuple(pages[row.page].document for row in rows),
        batch_size=batch_size,
        pad_id=teacher.tokens.pad_id,
        fingerprint=content_hash(key),
    )


def encoded(teacher: Teacher, sources: Sequence[PageSource], size: int) -> Tensor:
    """Return the encoder states [G, N, E] of G pages, `size` of them per encoder pass."""
    blocks = (sources[i : i + size] for i in range(0, len(sources), size))
    return torch.cat(
        [
            teacher.encode(teacher.pixel_values([source.image() for source in block]))
            for block in blocks
        ]
    )


def token_sample(
    rows: Sequence[Sequence[int]],
    prompts: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    others: tuple[Other, ...] | None = None,
) -> Sample:
    """Make a sample of bare token sequences for a decoder that reads no page.

    Args:
        rows: prompt and answer tokens of each example.
        prompts: how many of them belong to the prompt; the answer starts there.
        device: where the decoder is.
        batch_size: rows per batch.
        others: counterfactual of each batch, for the ablation `pair`.

    Raises:
        DataError: no row, or a prompt that leaves no answer.
    """
    faults = [
        f"row {i}: {len(row)} tokens, of which {prompt} are the prompt"
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
        if not 1 <= prompt < len(row)
    ]
    if faults or not rows:
        raise DataError(
            f"Token sample: {'; '.join(faults) or 'no rows'}; every row needs at least one token "
            "of prompt and one of answer"
        )
    made = tuple(
        Example(0, Question(str(i), "", ("",)), tuple(row), prompt)
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    )
    return Sample(
        rows=made,
        states=torch.zeros(1, 0, 1, device=device),
        documents=tuple(row.question.id for row in made),
        batch_size=batch_size,
        pad_id=0,
        fingerprint=content_hash([[list(row) for row in rows], list(prompts), batch_size]),
        others=others,
    )
