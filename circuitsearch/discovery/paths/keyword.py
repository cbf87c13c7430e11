"""Paths: which chain of sub-layers carries a keyword to the query that reads the page.

Donut-MINT (arXiv 2509.26235, Prop. 4) asks how the keyword of "What is the total?" reaches the last
cross-attention. Between the keyword's embedding and the query of C3 each of five sub-layers is
passed by (residual) or passed through (its transform): 2^5 = 32 paths that no image enters.

    S: out_proj(v_proj(LN(x))), as if `<s_answer>` attended to the keyword with weight one
    M: fc2(fc1(LN(x))), without the activation (the literal "linear transformations")

A path is effective when the query made of its vector resembles the clean query at `<s_answer>`. The
paper does not name its measure, so three are reported with their rank agreement, and a fourth:

    effectiveness  cosine of path query and clean query, per head, averaged over heads and keywords
    overlap        1 - Jensen-Shannon divergence (bits) of the two attention maps over the page
    loss           loss of the first answer token when C3 reads the path's vector at `<s_answer>`
    top_overlap    share of the most attended encoder tokens that both maps have in common

The paper's text names S0, S1, S2 in one place and the final self-attention alone in another; both
sets can be asked for (`SUBLAYER_SETS`). Options that the paper leaves open are
`transforms.PathOptions`.

Check: without biases and activation the transforms are linear, and then the sum over all paths
equals the composition of (I + T_i). `PathTable.identity_gap` is the relative difference and is zero
up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError, DataError, choice_problem, raise_together
from circuitsearch.teacher.decoders import ResidualDecoder, write
from circuitsearch.teacher.documents.collate import Batch, Example
from circuitsearch.teacher.loading import Teacher

from ..ablation import Progress
from ..keywords import Keywords, question_words
from ..sample import Sample
from .measures import BatchPaths, measure
from .rows import PathRows
from .table import PathScore, PathTable
from .transforms import (
    PathOptions,
    Spots,
    chains,
    identity_gap,
    linear_options,
    transform,
)

__all__ = ["SUBLAYER_SETS", "PathScore", "PathTable", "keyword_paths", "keyword_rows"]

SUBLAYER_SETS: Mapping[str, tuple[str, ...]] = {
    "paper": ("S1", "M1", "S2", "M2", "S3"),
    "literal": ("S0", "M0", "S1", "M1", "S2"),
    "full": ("S0", "M0", "S1", "M1", "S2", "M2", "S3"),
}
"""Sets of sub-layers by name: the conclusion's reading, the text's reading, and all before C3."""

_MOST = 10


def keyword_paths(
    teacher: Teacher,
    sample: Sample,
    keywords: Keywords | None = None,
    *,
    target: str = "C3",
    sublayers: str | Sequence[str] = "paper",
    options: PathOptions | None = None,
    decoder: ResidualDecoder | None = None,
    progress: Progress | None = None,
) -> PathTable:
    """Tabulate all paths from keyword to query.

    Args:
        teacher: whose decoder and tokenizer are used.
        sample: questions to average over.
        keywords: tells the keyword positions of an example; None means every word token of its
            question.
        target: a cross-attention.
        sublayers: a name in `SUBLAYER_SETS`, or names of self-attentions and feed-forwards before
            the target.
        options: how transforms are computed; None means the defaults.
        decoder: another view in place of the teacher's.
        progress: called with ("paths", batches done, batches).

    Raises:
        ConfigError: target or sub-layers do not fit.
        DataError: no example has a keyword.
    """
    chosen = PathOptions() if options is None else options
    rows = keyword_rows(
        teacher,
        sample,
        keywords,
        target=target,
        sublayers=sublayers,
        options=chosen,
        decoder=decoder,
        progress=progress,
    )
    return _table(teacher.fingerprint, target, chosen, rows)


def keyword_rows(
    teacher: Teacher,
    sample: Sample,
    keywords: Keywords | None = None,
    *,
    target: str = "C3",
    sublayers: str | Sequence[str] = "paper",
    options: PathOptions | None = None,
    decoder: ResidualDecoder | None = None,
    progress: Progress | None = None,
) -> PathRows:
    """Measure all paths from keyword to query, keyword token by keyword token.

    Arguments and errors are those of `keyword_paths`, whose table averages these rows.

    Memory: 4 * 2^k * (heads + 4) bytes per keyword token, for k sub-layers.
    """
    view = teacher.decoder if decoder is None else decoder
    goal, order = _resolved(view, target, sublayers)
    chosen = PathOptions() if options is None else options
    find = question_words(teacher.tokens.tokenizer) if keywords is None else keywords
    measured: list[tuple[int, BatchPaths]] = []
    with torch.no_grad():
        for done, (batch, states) in enumerate(sample.batches):
            spots = _spots(batch, find)
            if spots is not None:
                part = _measure(view, batch, states, spots, goal, order, chosen)
                measured.append((done * sample.batch_size, part))
            if progress is not None:
                progress("paths", done + 1, len(sample.batches))
    if not measured:
        raise DataError(
            "Paths: no example has a keyword; give a `keywords` function that finds some"
        )
    return PathRows.of(tuple(s.name for s in order), measured)


def _resolved(
    decoder: ResidualDecoder, target: str, sublayers: str | Sequence[str]
) -> tuple[SubLayer, tuple[SubLayer, ...]]:
    """Return target and sub-layers as records, or name all that is wrong with them."""
    if isinstance(sublayers, str) and sublayers not in SUBLAYER_SETS:
        raise ConfigError(choice_problem("Paths: sub-layer set", sublayers, tuple(SUBLAYER_SETS)))
    names = SUBLAYER_SETS[sublayers] if isinstance(sublayers, str) else tuple(sublayers)
    goal = SubLayer.parse(target)
    order = tuple(sorted({SubLayer.parse(name) for name in names}))
    problems = []
    if goal.kind is not Kind.CROSS or goal not in decoder.sublayers:
        crosses = [s.name for s in decoder.sublayers if s.kind is Kind.CROSS]
        problems.append(f"target: got {target}, allowed are {', '.join(crosses) or 'none here'}")
    for sublayer in order:
        if sublayer.kind is Kind.CROSS:
            problems.append(f"{sublayer}: a cross-attention reads the page; paths are image-free")
        elif sublayer not in decoder.sublayers:
            problems.append(f"{sublayer}: not in this decoder")
        elif sublayer > goal:
            problems.append(f"{sublayer}: behind the target {goal}")
    if not 1 <= len(order) <= _MOST:
        problems.append(f"got {len(order)} sub-layers, allowed are 1 to {_MOST} (2^k paths)")
    raise_together(problems, ConfigError, "Paths")
    return goal, order


def _spots(batch: Batch, find: Callable[[Example], Sequence[int]]) -> Spots | None:
    """Return the keyword tokens of a batch, None when there are none."""
    found: list[tuple[int, int, int]] = []
    for row, example in enumerate(batch.examples):
        for position in find(example):
            if not 0 <= position < example.prompt:
                raise ConfigError(
                    f"Keywords of question {example.question.id!r}: got position {position}, "
                    f"allowed are positions of the prompt, 0 to {example.prompt - 1}"
                )
            found.append((row, position, example.prompt - 1))
    if not found:
        return None
    rows, positions, answers = torch.tensor(found, device=batch.ids.device).unbind(dim=1)
    return Spots(rows, positions, answers)


def _measure(
    decoder: ResidualDecoder,
    batch: Batch,
    states: Tensor,
    spots: Spots,
    target: SubLayer,
    order: tuple[SubLayer, ...],
    options: PathOptions,
) -> BatchPaths:
    """Run the batch up to the target, build all path vectors, and measure them."""
    memory = decoder.memory(states, batch.pages)
    x = embedding = decoder.embed(batch.ids)
    streams = {}
    for sublayer in decoder.sublayers:
        streams[sublayer] = x
        if sublayer == target:
            break
        x = x + write(decoder, sublayer, x, memory)
    origin = embedding if options.start == "embedding" else streams[order[0]]
    start = spots.at_keyword(origin)

    def transforms(by: PathOptions) -> list[Callable[[Tensor], Tensor]]:
        return [transform(decoder, s, streams[s], spots, by) for s in order]

    gap = identity_gap(start, transforms(linear_options(options)))
    vectors = chains(start, transforms(options))
    return measure(decoder, batch, memory, x, spots, target, vectors, options, gap)


def _table(teacher: str, target: str, options: PathOptions, rows: PathRows) -> PathTable:
    """Average the measures over keyword tokens."""
    per_token, overlaps = rows.effectiveness, rows.overlaps.mean(axis=1)
    losses = None if rows.losses is None else rows.losses.mean(axis=1)
    paths = tuple(
        PathScore(
            through=through,
            effectiveness=float(per_token[index].mean()),
            effectiveness_sd=float(per_token[index].std()),
            heads=tuple(rows.cosines[index].mean(axis=0).tolist()),
            overlap=float(overlaps[index]),
            loss=None if losses is None else float(losses[index]),
            top_overlap=float(rows.top_overlaps[index].mean()),
        )
        for index, through in enumerate(rows.paths)
    )
    columns = {"effectiveness": per_token.mean(axis=1), "overlap": overlaps}
    if losses is not None:
        columns["loss"] = -losses  # a low loss is good
    return PathTable(
        teacher=teacher,
        target=target,
        sublayers=rows.sublayers,
        options=asdict(options),
        examples=len(set(rows.examples.tolist())),
        keywords=per_token.shape[1],
        clean_loss=float(rows.clean_losses.mean()),
        paths=paths,
        identity_gap=rows.gap,
        agreement=_agreement(columns),
    )


def _agreement(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the rank agreement of each pair of measures; undefined ones are left out."""
    names = list(columns)
    found = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if len(columns[a]) > 2 and np.ptp(columns[a]) > 0 and np.ptp(columns[b]) > 0:
                found[f"{a}~{b}"] = float(stats.spearmanr(columns[a], columns[b]).statistic)
    return found
