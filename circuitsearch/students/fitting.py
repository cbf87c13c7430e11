"""Fitting what stands in for sub-layers to a decoder's activations, in one pass over pages.

With z = LN(x), what a sub-layer reads at a position, w, what it writes there, x', the stream behind
it, and t, the input token,

    mean     c = average of w over the positions that predict an answer token
    linear   A, b = argmin sum |w - A z - b|^2 + l |A|^2 over all positions, l = ridge * tr(S) / d
    token    map[t] = the most frequent argmax of the logits of x' over all positions of t

where S [d, d] is the sum of (z - mean z)(z - mean z)^T. In closed form A = W (S + l I)^-1, with
W the sum of (w - mean w)(z - mean z)^T, and b = mean w - A mean z. The mean is taken where the loss
is, since nothing else decides an answer; map and table are fitted on the prompt too, because later
self-attentions read what stands there. All are fitted to the decoder as it is, one sub-layer at
a time: nothing is fitted again behind another replacement.

Of equally frequent tokens the lowest stands in the table, and a token that no page has stands for
itself. Padding counts nowhere.

FLAP (arXiv 2312.11983) puts the mean of what it removes into a bias; ReplaceMe (arXiv 2505.02819)
puts a map fitted in closed form in the place of whole blocks. Token reprojection is from Donut-MINT
(arXiv 2509.26235, Proposition 3 and Fig. 6), which collapses the stream at run time; a table keeps
of it what depends on the input token alone, and needs no sub-layer to be run.

Sums are kept in float64 and taken batch by batch, 2 d^2 + O(d) numbers per sub-layer, and for
tables the pairs of tokens that occur. The order of batches is fixed, so the same decoder and pages
give the same numbers bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import (
    ConfigError,
    DataError,
    choice_problem,
    number_problems,
    raise_together,
)
from circuitsearch.students.features.reader import Features
from circuitsearch.students.replacements import FITTED, Replacements
from circuitsearch.teacher.answering import MOST_TOGETHER, together
from circuitsearch.teacher.decoders import Affine, ResidualDecoder, nearest_tokens, write
from circuitsearch.teacher.documents.collate import IGNORED

__all__ = ["fit_replacements"]

_RIDGE = 1e-4


def fit_replacements(
    view: ResidualDecoder,
    features: Features,
    sublayers: Collection[SubLayer],
    *,
    names: Collection[str] = FITTED,
    examples: Sequence[int] | None = None,
    ridge: float = _RIDGE,
    batch_size: int = MOST_TOGETHER,
) -> Replacements:
    """Fit what may stand in for sub-layers, in one pass over the pages.

    Args:
        view: the whole decoder whose activations count: the teacher's, or an elastic teacher's.
        features: cached states of the fitting pages (training pages, not those that judge).
        sublayers: what may be replaced.
        names: which of `FITTED` to fit.
        examples: indices of the examples to use; None uses all.
        ridge: penalty of a map, in units of the mean variance of what the sub-layer reads.
        batch_size: most examples per pass; fewer where pages are large (`teacher.answering`).

    Returns:
        The numbers, on the view's device.

    Raises:
        ConfigError: unknown names, a ridge that is not positive, or sub-layers that the decoder
            lacks; all faults together.
        DataError: there are no examples.
    """
    _check_arguments(view, sublayers, names, ridge)
    chosen = list(range(len(features.examples))) if examples is None else list(examples)
    if not chosen:
        raise DataError("Fitting replacements: there are no examples; give pages with questions")
    sums = {sublayer: _Sums() for sublayer in sorted(sublayers)}
    batch_size = together(view.shape, features.tokens, batch_size)
    with torch.no_grad():
        for first in range(0, len(chosen), batch_size):
            _add_batch(view, features, chosen[first : first + batch_size], sums, names)
    vocabulary = view.shape.vocabulary
    return Replacements(
        means={s: one.mean() for s, one in sums.items()} if "mean" in names else {},
        maps={s: one.map(ridge) for s, one in sums.items()} if "linear" in names else {},
        tokens={s: one.pairs.table(vocabulary) for s, one in sums.items()}
        if "token" in names
        else {},
    )


@dataclass
class _Pairs:
    """How often an input token met a nearest token; pairs ascend and are held as one number.

    Attributes:
        keys: [n] input token * V + nearest token.
        counts: [n].
    """

    keys: Any = None
    counts: Any = None

    def add(self, ids: Tensor, nearest: Tensor, vocabulary: int) -> None:
        """Count pairs of input tokens [rows] and nearest tokens [rows]."""
        keys = ids * vocabulary + nearest
        counts = torch.ones_like(keys)
        if self.keys is not None:
            keys, counts = torch.cat([self.keys, keys]), torch.cat([self.counts, counts])
        self.keys, place = torch.unique(keys, return_inverse=True)
        self.counts = torch.zeros_like(self.keys).index_add_(0, place, counts)

    def table(self, vocabulary: int) -> Tensor:
        """Return [V], the most frequent nearest token of each token (module docstring)."""
        tokens = self.keys // vocabulary
        # stable: of a token's pairs the most frequent comes first, of equal ones the lowest
        order = torch.argsort(self.counts, descending=True, stable=True)
        order = order[torch.argsort(tokens[order], stable=True)]
        sizes = torch.bincount(tokens, minlength=vocabulary)
        seen = sizes > 0
        table = torch.arange(vocabulary, device=tokens.device)
        table[seen] = self.keys[order[(sizes.cumsum(0) - sizes)[seen]]] % vocabulary
        return table


@dataclass
class _Sums:
    """Running sums of one sub-layer in float64; `gram` and `cross` only where maps are fitted.

    Rows of reads and writes carry a 1 in the last place, so that means are sums like the others.
    """

    answers: Any = 0.0  # [d + 1] sum of writes over answer positions, and their number
    gram: Any = 0.0  # [d + 1, d + 1] sum of read read^T over all positions
    cross: Any = 0.0  # [d + 1, d] sum of read write^T over all positions
    pairs: _Pairs = field(default_factory=_Pairs)

    def mean(self) -> Tensor:
        """Return [d], the mean write."""
        mean: Tensor = self.answers[:-1] / self.answers[-1]
        return mean.float()

    def map(self, ridge: float) -> Affine:
        """Return the ridge solution (module docstring)."""
        gram, cross = self.gram, self.cross
        count, read, written = gram[-1, -1], gram[-1, :-1], cross[-1]
        scatter = gram[:-1, :-1] - torch.outer(read, read) / count
        shared = cross[:-1] - torch.outer(read, written) / count
        # reads that never vary predict nothing, but rounding leaves some scatter to fit
        least = torch.clamp(1e-8 * gram.diagonal()[:-1].mean(), min=1e-30)
        penalty = torch.maximum(ridge * scatter.diagonal().mean(), least)
        weight = torch.linalg.solve(scatter + penalty * torch.eye(len(read)).to(scatter), shared)
        bias = (written - read @ weight) / count
        return Affine(weight.T.float().contiguous(), bias.float())


def _add_batch(
    view: ResidualDecoder,
    features: Features,
    chosen: Sequence[int],
    sums: Mapping[SubLayer, _Sums],
    names: Collection[str],
) -> None:
    """Run one batch and add what the sub-layers read and write to their sums."""
    model: Any = view
    device = next(model.model.parameters()).device
    read = features.read(chosen)
    labels = read.batch.labels.to(device)
    answers = labels != IGNORED
    # padding stands on the right, behind the last label
    used = answers.flip(1).cummax(dim=1).values.flip(1)
    memory = view.memory(read.states.to(device), read.rows.to(device))
    ids = read.batch.ids.to(device)
    x = view.embed(ids)
    for sublayer in view.sublayers:
        written = write(view, sublayer, x, memory)
        if sublayer in sums:
            one = sums[sublayer]
            one.answers = one.answers + _with_one(written[answers]).sum(dim=0)
            if "token" in names:
                nearest = nearest_tokens(view, (x + written)[used])
                one.pairs.add(ids[used], nearest, view.shape.vocabulary)
            if "linear" in names:
                rows = _with_one(view.parts(sublayer).norm(x)[used])
                one.gram = one.gram + rows.T @ rows
                one.cross = one.cross + rows.T @ written[used].double()
        x = x + written


def _with_one(rows: Tensor) -> Tensor:
    """Return rows [n, d] as float64 with a last column of ones."""
    return functional.pad(rows.double(), (0, 1), value=1.0)


def _check_arguments(
    view: ResidualDecoder, sublayers: Collection[SubLayer], names: Collection[str], ridge: float
) -> None:
    """Refuse what cannot be fitted; all faults together."""
    problems = [choice_problem("names", name, FITTED) for name in names if name not in FITTED]
    problems += number_problems("ridge", ridge, low=1e-12)
    problems += [
        f"sublayers: got {sublayer}, allowed are {', '.join(map(str, view.sublayers))}"
        for sublayer in sorted(sublayers)
        if sublayer not in view.sublayers
    ]
    raise_together(problems, ConfigError, "Fitting replacements")
