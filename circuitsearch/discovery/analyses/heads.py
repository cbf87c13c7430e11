"""Whether head statistics tell which heads matter (Donut-MINT, arXiv 2509.26235, section 3.3).

The paper's second stage of pruning drops self-attention heads of high entropy and cross-attention
heads of low variance, as stand-ins for how much a head contributes. What a head contributes can be
measured: remove it and see the answers' loss rise. The analysis compares both orders, in every
reading that the paper leaves open (`lens.head_table.HeadOptions`).
"""

from __future__ import annotations

import numpy as np

from circuitsearch.core.components import Head
from circuitsearch.core.files import seed_from
from circuitsearch.core.findings import Finding, Verdict

from ..ablation import means_for
from ..lens.heads import head_rows
from ..patching.components import effects
from .material import Material
from .measures.agreement import Agreement
from .shared import cannot, judged, told
from .tables.heads import JUDGED, KINDS, MEASURES, MeasuredHeads, charts, default, tables

__all__ = ["heads_analysis"]

_ASKS = (
    "An attention head that spreads its attention evenly seems to pick nothing, one that attends "
    "to a few places seems to know what it wants. If that impression is right, heads can be pruned "
    "by looking at their attention alone, without measuring what happens when one is removed. Does "
    "the look of a head tell what it is worth?"
)
_METHOD = (
    "Statistic of a head: self-attention by entropy (low is thought to matter), cross-attention by "
    "the variance of its weights over the page (high is thought to matter), averaged over rows "
    "that predict an answer token; entropy is divided by that of even attention over the visible "
    "keys, because later rows see more of them. The paper leaves rows and norms open and once "
    "takes low variance as the good sign: all readings are in the table, this one is judged. "
    "Effect of a head: rise of the answers' loss (nats per token) when it writes nothing; as a "
    "second measure, rise of the margin between the best wrong logit and the right one when it "
    "writes its average over other pages. Spearman's correlation, positive where the statistic "
    "would keep the heads of larger effect; 95 % interval with the outer ends of Fisher's interval "
    "over heads and of a bootstrap by document; p by permuting heads."
)
_NOTES = (
    "A correlation over all layers may come from differences between layers; those of single "
    "sub-layers say whether the statistic helps to choose heads within one.",
    "Reading low variance as the good sign turns the sign of the correlation, no more.",
)
_RULE = (
    "Shown: the whole interval of Spearman's correlation over all heads of the kind lies above 0; "
    "not shown: none of it does; open otherwise"
)


def heads_analysis(material: Material) -> Finding:
    """Compare entropy and variance of heads with what removing the heads does.

    Returns:
        A finding with `values["effects"]`, the mean rise of the answers' loss in nats by head's
        name, `values["statistic"]`, entropy or variance by head under the default reading, and
        `values["agreement"]`, Spearman's correlation by kind (None where there is none).
    """
    measured = _measured(material)
    found = {kind: measured.agreement(default(kind), kind, JUDGED) for kind in KINDS}
    return Finding(
        analysis="heads",
        title="Does the look of a head tell what it is worth?",
        asks=_ASKS,
        method=_METHOD,
        examples=material.sample.examples,
        tables=tables(measured),
        charts=tuple(charts(measured)),
        verdicts=tuple(_verdict(kind, one, measured) for kind, one in found.items()),
        notes=_NOTES,
        values={
            "effects": measured.means,
            "statistic": {name: entry.value for name, entry in measured.judged.items()},
            "agreement": {kind: None if one is None else one.rho for kind, one in found.items()},
        },
    )


def _measured(material: Material) -> MeasuredHeads:
    view, sample = material.view, material.sample
    rows = head_rows(view, sample, progress=material.progress)
    names = tuple(
        Head(sublayer, index).name
        for sublayer, attention in rows.attentions.items()
        for index in range(attention.entropies.shape[1])
    )
    found = {}
    for measure, (ablation, metric) in MEASURES.items():
        means = means_for(view, sample, ablation, material.other_sample)
        removed = effects(
            view, sample, names, ablation, means, metric=metric, progress=material.progress
        )
        found[measure] = np.stack([removed[name] for name in names], axis=1)
    seed = seed_from("heads", sample.fingerprint, material.seed)
    return MeasuredHeads(rows, names, found, sample.documents, seed)


def _verdict(kind: str, found: Agreement | None, measured: MeasuredHeads) -> Verdict:
    claim = f"Section 3.3, {KINDS[kind]}"
    statistic = "entropy" if kind == "S" else "variance"
    says = f"The {statistic} of a {KINDS[kind]} head tells how much it matters."
    paper = "used to choose the heads to prune; no number"
    if found is None:
        why = "fewer than three heads, or all of them look or work alike"
        return cannot(claim, says, paper, why, _RULE)
    here = (
        f"Spearman {told(found.rho, found.low, found.high)} over {found.n} heads, "
        f"p = {found.p:.2g}; {measured.count}"
    )
    return Verdict(claim, says, paper, here, judged(found.low, found.high, 0), _RULE)
