"""What the query at `<s_answer>` is worth: the first answer token's loss when it is another one.

clean     the run's own query
even      no query at all, so that every place of the page is looked at alike
page      the query of the same question on another page
question  the query of another question on the same page
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.core.findings import Answer
from circuitsearch.teacher.decoders import Memory, ResidualDecoder, continue_from, token_loss
from circuitsearch.teacher.documents.collate import Batch

from ...patching.queries import behind_query, placed, queries, stream_before
from ...sample import Sample
from ..shared import Interval, judged

__all__ = ["DEAR", "DEAR_RULE", "answers_at", "first_losses", "judged_query", "query_losses"]

DEAR = 0.1
"""Nats of the first answer token's loss below which one query is as good as another."""

DEAR_RULE = (
    f"shown if the whole interval is below {DEAR} nats, not shown if it is at or above, open "
    "otherwise; open too where it is not sure that a query which looks everywhere alike costs more "
    f"than {DEAR} nats, and not asked where it costs less"
)
"""The rule of `judged_query` in words, behind the name of the rise."""


def judged_query(rise: Interval, worth: Interval) -> Answer:
    """Return whether another query does as well as the clean one.

    Args:
        rise: of the loss with the other query.
        worth: rise of the loss with a query that looks everywhere alike. Where the clean query is
            worth nothing, being as good as it says nothing.
    """
    known = judged(*worth[1:], DEAR)
    if known == "not shown":
        return "cannot be asked"
    return judged(*rise[1:], DEAR, above=False) if known == "shown" else "open"


def answers_at(batch: Batch) -> Tensor:
    """Return [B], the position of each row's last prompt token."""
    places = [example.prompt - 1 for example in batch.examples]
    return torch.tensor(places, device=batch.ids.device)


def first_losses(decoder: ResidualDecoder, batch: Batch, x: Tensor) -> Tensor:
    """Return [B], the loss (nats) of the first answer token; x [B, T, d] is the last stream."""
    rows, answers = torch.arange(len(x), device=x.device), answers_at(batch)
    return token_loss(decoder.readout(x[rows, answers]), batch.labels[rows, answers])


def query_losses(
    decoder: ResidualDecoder, sample: Sample, target: SubLayer
) -> dict[str, np.ndarray]:
    """Return the first answer token's losses [n] in nats, by the name of the query.

    Args:
        decoder: the view.
        sample: the questions.
        target: the cross-attention whose query at the last prompt token is replaced.

    Returns:
        `page` is missing with a single page; `question` is NaN where a question is the only one
        about its page in its batch.
    """
    found: dict[str, list[Tensor]] = {}
    swapped = sample.swapped if len(sample.states) > 1 else (None,) * len(sample.batches)
    with torch.no_grad():
        for (batch, states), others in zip(sample.batches, swapped, strict=True):
            memory = decoder.memory(states, batch.pages)
            for name, losses in _batch_losses(decoder, batch, memory, others, target).items():
                found.setdefault(name, []).append(losses)
    return {name: torch.cat(parts).double().cpu().numpy() for name, parts in found.items()}


def _batch_losses(
    decoder: ResidualDecoder,
    batch: Batch,
    memory: Memory,
    others: Tensor | None,
    target: SubLayer,
) -> dict[str, Tensor]:
    """Return the losses [B] of one batch; `others` are the states of other pages."""
    x, answers = stream_before(decoder, batch.ids, memory, target), answers_at(batch)
    clean = queries(decoder, target, x)
    rows = torch.arange(len(x), device=x.device)
    own = clean[rows, :, answers]

    def losses(given: Tensor) -> Tensor:
        query = placed(clean, answers, given)
        behind = behind_query(decoder, target, x, memory, query)
        return first_losses(decoder, batch, continue_from(decoder, behind, memory, after=target))

    found = {"clean": losses(own), "even": losses(torch.zeros_like(own))}
    if others is not None:
        elsewhere = decoder.memory(others, batch.pages)
        read = stream_before(decoder, batch.ids, elsewhere, target)
        found["page"] = losses(queries(decoder, target, read)[rows, :, answers])
    rivals = _rivals(batch)
    alone = torch.tensor([rival is None for rival in rivals], device=x.device)
    index = [row if rival is None else rival for row, rival in enumerate(rivals)]
    found["question"] = losses(own[index]).masked_fill(alone, torch.nan)
    return found


def _rivals(batch: Batch) -> list[int | None]:
    """Return for each row the next one, going round, that asks something else of the same page."""
    pages, asked = batch.pages.tolist(), [e.question.text for e in batch.examples]
    count = len(asked)
    return [
        next(
            (
                j
                for j in ((i + k) % count for k in range(1, count))
                if pages[j] == pages[i] and asked[j] != asked[i]
            ),
            None,
        )
        for i in range(count)
    ]
