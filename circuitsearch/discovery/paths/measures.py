"""How well a path's vector stands in for the clean stream at the reading cross-attention.

Given the vectors of all paths at the spots of one batch, four measures per path and keyword token:
cosine of the queries, overlap of the attention maps over the page, overlap of their most attended
tokens, and the loss of the first answer token. See `keyword`.

Queries have much in common whatever is asked, biases to begin with. So beside the first measure
stands its control: the cosine with the clean query of another question of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.teacher.decoders import Memory, ResidualDecoder, continue_from, token_loss, write
from circuitsearch.teacher.documents.collate import Batch

from .transforms import PathOptions, Spots, reader

__all__ = ["BatchPaths", "measure"]


@dataclass(frozen=True)
class BatchPaths:
    """Measures of one batch; n paths, K keyword tokens, H heads of the target.

    Attributes:
        cosines: [n, K, H].
        controls: [n, K] cosine with the clean query of another question, mean over heads; NaN where
            the batch asks no other.
        overlaps: [n, K], by Jensen-Shannon divergence.
        top_overlaps: [n, K], by most attended tokens.
        losses: [n, K], or None when a self-attention follows the target.
        clean_losses: [K] loss of the first answer token in the clean run.
        rows: [K] row of the batch.
        gap: `transforms.identity_gap` of this batch.
    """

    cosines: Tensor
    controls: Tensor
    overlaps: Tensor
    top_overlaps: Tensor
    losses: Tensor | None
    clean_losses: Tensor
    rows: Tensor
    gap: float


def measure(
    decoder: ResidualDecoder,
    batch: Batch,
    memory: Memory,
    stream: Tensor,
    spots: Spots,
    target: SubLayer,
    vectors: Tensor,
    options: PathOptions,
    gap: float,
) -> BatchPaths:
    """Measure all paths of a batch.

    Args:
        decoder: the view.
        batch: tokens and labels.
        memory: keys and values of the target and whatever follows it.
        stream: [B, T, d] what the target reads in the clean run.
        spots: K keyword tokens.
        target: the cross-attention.
        vectors: [n, K, d] path vectors.
        options: how LayerNorm and biases enter the queries.
        gap: passed on.
    """
    parts = decoder.parts(target)
    clean = spots.at_answer(stream)
    query = reader(parts, clean, options)
    path_queries, clean_query = query(vectors), query(clean)
    cosines = cosine_similarity(path_queries, clean_query, dim=-1)
    rivals, known = _rivals(batch, spots)
    controls = cosine_similarity(path_queries, clean_query[rivals], dim=-1).mean(dim=-1)
    controls = controls.masked_fill(~known, torch.nan)
    # attention is judged against the true clean map, so both queries carry their biases there
    attend = reader(parts, clean, PathOptions(norm=options.norm))
    keys = memory.keys_values[target][0]
    overlaps, top_overlaps = _overlaps(
        attend(vectors) * parts.score_scale,
        attend(clean) * parts.score_scale,
        keys,
        memory.row_pages()[spots.rows],
        options.top,
    )
    readers = memory.read_by(memory.row_pages()[spots.rows])
    labels = batch.labels[spots.rows, spots.answers]
    losses = None
    later = [s for s in decoder.sublayers if s > target]
    if not any(s.kind is Kind.SELF for s in later):
        losses = torch.stack(
            [_first_loss(decoder, clean, v, readers, target, labels) for v in vectors]
        )
    end = continue_from(decoder, stream, memory, after=_before(decoder, target))
    clean_losses = token_loss(decoder.readout(spots.at_answer(end)), labels)
    return BatchPaths(
        cosines, controls, overlaps, top_overlaps, losses, clean_losses, spots.rows, gap
    )


def _rivals(batch: Batch, spots: Spots) -> tuple[Tensor, Tensor]:
    """Return [K] the next spot of another question, going round, and [K] whether there is one."""
    asked = [batch.examples[row].question.text for row in spots.rows.tolist()]
    count = len(asked)
    found = [
        next(((i + k) % count for k in range(1, count) if asked[(i + k) % count] != asked[i]), -1)
        for i in range(count)
    ]
    index = torch.tensor(found, device=spots.rows.device)
    return index.clamp_min(0), index >= 0


def _before(decoder: ResidualDecoder, target: SubLayer) -> SubLayer | None:
    """Return the sub-layer in front of the target."""
    earlier = [s for s in decoder.sublayers if s < target]
    return earlier[-1] if earlier else None


def _first_loss(
    decoder: ResidualDecoder,
    clean: Tensor,
    vectors: Tensor,
    memory: Memory,
    target: SubLayer,
    labels: Tensor,
) -> Tensor:
    """Return [K], the loss at `<s_answer>` when the target reads path vectors [K, d] there.

    The stream itself stays clean [K, d]; behind the target no position reads another, so one row
    per keyword suffices.
    """
    x = clean.unsqueeze(1)
    x = x + write(decoder, target, vectors.unsqueeze(1), memory)
    x = continue_from(decoder, x, memory, after=target)
    return token_loss(decoder.readout(x.squeeze(1)), labels)


def _overlaps(
    paths: Tensor, clean: Tensor, keys: Tensor, pages: Tensor, top: int
) -> tuple[Tensor, Tensor]:
    """Return two agreements of attention maps [n, K], each averaged over heads.

    The first is 1 - Jensen-Shannon divergence in bits, the second the share of the `top` most
    attended tokens in common (of all N where there are fewer).

    Args:
        paths: [n, K, H, hd] scaled queries.
        clean: [K, H, hd] scaled queries.
        keys: [P, H, N, hd].
        pages: [K] page of each keyword token.
        top: tokens to compare.
    """
    top = min(top, keys.shape[2])
    columns, shared = [], []
    for k, page in enumerate(pages.tolist()):  # one at a time: n * H * N numbers are enough to hold
        p = torch.einsum("hd,hnd->hn", clean[k], keys[page]).softmax(dim=-1)
        q = torch.einsum("ahd,hnd->ahn", paths[:, k], keys[page]).softmax(dim=-1)
        middle = (p + q) / 2
        divergence = 0.5 * (_relative(p.expand_as(q), middle) + _relative(q, middle))
        columns.append(1 - (divergence / math.log(2)).mean(dim=-1))
        among = torch.zeros_like(p).scatter(-1, p.topk(top).indices, 1.0)
        common = among.expand_as(q).gather(-1, q.topk(top).indices)
        shared.append(common.mean(dim=(-2, -1)))
    return torch.stack(columns, dim=1), torch.stack(shared, dim=1)


def _relative(p: Tensor, q: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence over the last dimension; 0 log 0 counts 0."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(dim=-1)
