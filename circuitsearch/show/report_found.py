"""What a study found, as the report tells it: the incumbent, what the best plans keep, the prior.

All of it is computed from the records of finished trials, in the order of the trials.

    incumbent after n trainings    the highest quality among the first n
    selection frequency            share of the best tenth of the plans that keep a component
    prior trust                    Spearman's correlation of the sum of the kept components' effects
                                   with measured quality; the same of the predicted loss, its
                                   sign turned
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circuitsearch.core.budget import Budget, Limit
from circuitsearch.core.components import Kind, SubLayer, sublayers
from circuitsearch.core.measurement import Measurement, merit
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import DecoderShape, TeacherShape
from circuitsearch.show.text import count

if TYPE_CHECKING:
    from circuitsearch.search.storage.view import StudyView

__all__ = [
    "Found",
    "Step",
    "best_tenth",
    "head_selection",
    "incumbents",
    "selection",
    "trust_words",
]


@dataclass(frozen=True)
class Step:
    """One training in the course of a search.

    Attributes:
        trainings: how many students were trained by then, this one included.
        source: who proposed it.
        plan: the plan.
        quality: its ANLS; None when no answers were generated.
        best: highest ANLS so far; None while there is none.
    """

    trainings: int
    source: str
    plan: str
    quality: float | None
    best: float | None


@dataclass(frozen=True)
class Found:
    """What a study holds of a search.

    Attributes:
        measurements: of its trials, in their order.
        failed: number of plans whose training failed.
        limits: the budget.
        decoder: the teacher's decoder.
        heads: whether plans choose among heads.
        trust: how well the prior's scores ranked the plans; None when that is not known.
        ranking_trust: how well its ranking by predicted loss did, and over how many plans; None
            when that is not known.
        sampler: who proposed plans after the warm start.
        seed: the study's seed.
        promoted: measurements of the study's further phases: the best plans, distilled in full.
    """

    measurements: tuple[Measurement, ...]
    failed: int
    limits: tuple[Limit, ...]
    decoder: DecoderShape
    heads: bool
    trust: float | None
    sampler: str
    seed: int
    promoted: tuple[Measurement, ...] = ()
    ranking_trust: tuple[float, int] | None = None

    @classmethod
    def read(cls, view: StudyView, further: Sequence[StudyView] = ()) -> Found:
        """Read a study.

        Args:
            view: the search itself.
            further: the study's further phases.

        Raises:
            StorageError: the database cannot be read.
            DataError: the study's own description is malformed.
        """
        about = view.identity
        space: dict[str, Any] = about["space"]
        # A study keeps limits as numbers alone, the text of the search file is not part of it.
        limits = [
            {**one, "text": count(one["maximum"]) if one["accounting"] != "measured" else ""}
            for one in space["budget"]["limits"]
        ]
        trials = view.trials()
        return cls(
            measurements=tuple(t.measurement for t in trials if t.measurement is not None),
            failed=sum(trial.state == "failed" for trial in trials),
            limits=Budget.from_json({**space["budget"], "limits": limits}).limits,
            decoder=TeacherShape.from_json(space["teacher"]).decoder,
            heads=space["choices"]["attention"] != "whole",
            trust=view.prior_trust(),
            ranking_trust=view.ranking_trust(),
            sampler=str(about["sampler"]),
            seed=int(about["seed"]),
            promoted=tuple(made for phase in further for made in phase.measurements()),
        )


def incumbents(measurements: Sequence[Measurement]) -> tuple[Step, ...]:
    """Return the course of a search: every training and the best quality by then."""
    steps: list[Step] = []
    best: float | None = None
    for place, one in enumerate(measurements, start=1):
        if one.quality is not None:
            best = one.quality if best is None else max(best, one.quality)
        steps.append(Step(place, one.source, one.plan, one.quality, best))
    return tuple(steps)


def best_tenth(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """Return the best tenth, rounded up: highest quality, then lowest loss, then text."""
    ranked = sorted(measurements, key=merit)
    return tuple(ranked[: math.ceil(len(ranked) / 10)])


def selection(plans: Sequence[Plan], decoder: DecoderShape) -> dict[SubLayer, float]:
    """Return the share of plans that keep a sub-layer, in whole or in part.

    What stands in for a sub-layer and holds none of its heads or neurons does not count.

    Args:
        plans: one or more.
        decoder: the teacher's decoder; without an encoder it has no cross-attention.
    """
    return {
        one: sum(plan.units(one, decoder) > 0 for plan in plans) / len(plans)
        for one in sublayers(decoder.layers)
        if one.kind is not Kind.CROSS or decoder.encoder_width
    }


def head_selection(
    plans: Sequence[Plan], decoder: DecoderShape
) -> dict[SubLayer, tuple[float, ...]]:
    """Return the share of plans that keep a head: [heads] by attention."""
    found = {}
    for one in selection(plans, decoder):
        if one.kind is Kind.FEED:
            continue
        kept = [0] * decoder.heads
        for plan in plans:
            for head in _heads(plan, one, decoder):
                kept[head] += 1
        found[one] = tuple(number / len(plans) for number in kept)
    return found


def _heads(plan: Plan, attention: SubLayer, decoder: DecoderShape) -> Sequence[int]:
    """Return the heads of an attention that a plan keeps."""
    keep = plan.keep(attention)
    if keep is None or not plan.units(attention, decoder):
        return ()
    return range(decoder.heads) if keep.heads is None else keep.heads


def trust_words(trust: float | None, plans: int, ranking: tuple[float, int] | None = None) -> str:
    """Say how well the effects, and the ranking, ordered the plans that were measured.

    Args:
        trust: of the effects; None when it is not known.
        plans: number of measured plans.
        ranking: of the predicted loss, and the number of plans that it is known of; None when it is
            not known.
    """
    told = (
        "Not known: it takes effects, three measured plans or more, and plans that differ in "
        "their effects and in their quality."
        if trust is None
        else f"Spearman {_number(trust)} between the sum of the kept components' effects and "
        f"measured ANLS, over {plans} plans: the effects {_judged(trust)}."
    )
    if ranking is None:
        return told
    value, ranked = ranking
    return (
        f"{told} Spearman {_number(value)} between predicted loss, its sign turned, and measured "
        f"ANLS, over the {ranked} of them that were ranked: these losses {_judged(value)}."
    )


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _judged(trust: float) -> str:
    """Say what a rank correlation with quality means."""
    if trust >= 0.7:
        return "ranked the plans well"
    if trust >= 0.4:
        return "ranked the plans in part"
    if trust > 0.1:
        return "said little about which plan is better"
    if trust >= -0.1:
        return "said nothing about which plan is better"
    return "misled: the plans that they prefer came out worse"
