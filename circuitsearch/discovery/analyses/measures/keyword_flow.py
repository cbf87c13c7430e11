"""How a keyword reaches `<s_answer>`: attention of the self-attentions, and what cutting it costs.

    share   attention of one head from the last prompt token to the keyword's tokens
    flow    the same through all self-attentions up to one: the product of (A + 1) / 2, A the mean
            over heads (attention rollout, Abnar and Zuidema, arXiv 2005.00928)
    rise    of the first answer token's loss when the keyword is no longer seen there

Attention only says where a head looks, so the cuts decide which self-attention carries the keyword.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.teacher.decoders import Memory, ResidualDecoder, write
from circuitsearch.teacher.documents.collate import Batch

from ...ablation import Progress
from ...lens.attention_maps import attention_map
from ...patching.cuts import cut_write
from .keyword_questions import KeywordQuestions
from .query_losses import answers_at, first_losses

__all__ = ["KeywordFlow", "keyword_flow"]


@dataclass(frozen=True, eq=False)
class KeywordFlow:
    """What was measured on n keyword questions.

    Attributes:
        sublayers: the L self-attentions in front of the target.
        shares: [n, L, H] attention from the last prompt token to the keyword.
        flows: [n, L] of all self-attentions up to each.
        even: [n] share of an attention that spreads evenly.
        even_flows: [n, L] flow of attentions that spread evenly.
        rises: [n] rise of the loss (nats) by what is cut: `S1` no later position sees the keyword
            there, `S1 at <s_answer>` only the last prompt token does not, `all` nowhere, `all but
            S1` anywhere but there.
    """

    sublayers: tuple[str, ...]
    shares: np.ndarray
    flows: np.ndarray
    even: np.ndarray
    even_flows: np.ndarray
    rises: Mapping[str, np.ndarray]


def keyword_flow(
    decoder: ResidualDecoder,
    asked: KeywordQuestions,
    target: SubLayer,
    progress: Progress,
) -> KeywordFlow:
    """Measure attention to the keyword, and what cutting it costs.

    Args:
        decoder: the view.
        asked: the keyword questions.
        target: the cross-attention whose query the keyword has to reach.
        progress: called with ("keyword flow", batches done, batches).
    """
    selfs = [s for s in decoder.sublayers if s.kind is Kind.SELF and s < target]
    columns: dict[str, list[Tensor]] = {}
    rises: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for done, (batch, states) in enumerate(asked.sample.batches):
            memory = decoder.memory(states, batch.pages)
            keywords = _marked(batch, asked)
            for name, values in _attention(decoder, batch, memory, keywords, selfs).items():
                columns.setdefault(name, []).append(values)
            for name, values in _cuts(decoder, batch, memory, keywords, selfs).items():
                rises.setdefault(name, []).append(values)
            progress("keyword flow", done + 1, len(asked.sample.batches))
    joined = {n: torch.cat(v).double().cpu().numpy() for n, v in (columns | rises).items()}
    return KeywordFlow(
        sublayers=tuple(s.name for s in selfs),
        **{name: joined[name] for name in columns},
        rises={name: joined[name] for name in rises},
    )


def _marked(batch: Batch, asked: KeywordQuestions) -> Tensor:
    """Return [B, T] of bool, the keyword's tokens."""
    marked = torch.zeros_like(batch.ids, dtype=torch.bool)
    for row, example in enumerate(batch.examples):
        marked[row, list(asked.find(example))] = True
    return marked


def _attention(
    decoder: ResidualDecoder,
    batch: Batch,
    memory: Memory,
    keywords: Tensor,
    selfs: Collection[SubLayer],
) -> dict[str, Tensor]:
    """Return shares and flows of one batch, and those of even attention."""
    rows = torch.arange(len(batch.ids), device=batch.ids.device)
    answers = answers_at(batch)
    length = batch.ids.shape[1]
    same = torch.eye(length, device=batch.ids.device)
    spread = torch.ones_like(same).tril()
    spread = spread / spread.sum(dim=1, keepdim=True)
    x = decoder.embed(batch.ids)
    rolled = even = same.expand(len(rows), -1, -1)
    shares, flows, even_flows = [], [], []
    for sublayer in decoder.sublayers:
        if sublayer in selfs:
            weights = attention_map(decoder, sublayer, x, memory)
            shares.append((weights[rows, :, answers] * keywords[:, None]).sum(dim=-1))
            rolled = (weights.mean(dim=1) + same) / 2 @ rolled
            even = (spread + same) / 2 @ even
            flows.append((rolled[rows, answers] * keywords).sum(dim=-1))
            even_flows.append((even[rows, answers] * keywords).sum(dim=-1))
        x = x + write(decoder, sublayer, x, memory)
    return {
        "shares": torch.stack(shares, dim=1),
        "flows": torch.stack(flows, dim=1),
        "even": keywords.sum(dim=1) / (answers + 1),
        "even_flows": torch.stack(even_flows, dim=1),
    }


def _cuts(
    decoder: ResidualDecoder,
    batch: Batch,
    memory: Memory,
    keywords: Tensor,
    selfs: Collection[SubLayer],
) -> dict[str, Tensor]:
    """Return the rise of the first answer token's loss [B] by what is cut."""
    later = keywords[:, None, :] & ~keywords[:, :, None]  # reader by position read
    positions = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    at_answer = later & (positions == answers_at(batch)[:, None])[:, :, None]

    def losses(cut: Collection[SubLayer], unseen: Tensor) -> Tensor:
        x = decoder.embed(batch.ids)
        for s in decoder.sublayers:
            x = x + (cut_write(decoder, s, x, unseen) if s in cut else write(decoder, s, x, memory))
        return first_losses(decoder, batch, x)

    clean = losses((), later)
    found = {s.name: losses([s], later) for s in selfs}
    found |= {f"{s} at <s_answer>": losses([s], at_answer) for s in selfs}
    found["all"] = losses(selfs, later)
    found |= {f"all but {s}": losses([o for o in selfs if o != s], later) for s in selfs}
    return {name: values - clean for name, values in found.items()}
