"""What every baseline gets (`Case`), what it gives back (`Proposal`), and what all of them share.

A published rule says in which order parts of a decoder go. Turning that order into a plan under a
budget is the same for all (`remove`):

1. parts go in the rule's order until the budget is met;
2. the last unit that reads the page (a cross-attention, or its last head) stays: without it no
   student can answer. The proposal's notes say where the rule would have removed it;
3. what still fits comes back, last removed first. The papers stop at a number of parts and need no
   such step; under a budget in parameters and multiply-adds it only makes a baseline stronger.

Where a paper gives scores of parts of unlike size but no order, the order is that of score per cost
(`by_cost`); the cost of a unit is the sum of its shares of every limit, in the whole teacher.

A *pass* is one forward or one backward run of a decoder on one question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from circuitsearch.core.budget import Budget
from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.cost import ScopeCost, cost, sublayer_cost
from circuitsearch.core.errors import InfeasibleError
from circuitsearch.core.files import record_fields
from circuitsearch.core.plan import Plan
from circuitsearch.discovery.sample import Sample
from circuitsearch.students.features.reader import Features
from circuitsearch.students.plan_view import NeuronOrder
from circuitsearch.teacher.loading import Teacher

from .masks import Masks
from .units import Granularity, Kept, Units

__all__ = [
    "Case",
    "Proposal",
    "Sweep",
    "by_cost",
    "fill",
    "infeasible",
    "proposal",
    "remove",
    "taken_back",
]

_QUESTIONS = 128
"""Most calibration questions, as many as Wanda's sequences."""


class Sweep(Protocol):
    """Leads a walk over many plans: `search.exhaustive.sweep`."""

    def __call__(
        self,
        plans: Iterable[Plan],
        root: Any,
        expand: Any,
        leaf: Callable[[Any], Any],
        /,
    ) -> Iterator[tuple[Plan, Any]]:
        """Yield every plan with its value."""
        ...


@dataclass(frozen=True)
class Case:
    """One task for all baselines: a teacher, calibration pages and a budget.

    Attributes:
        teacher: what is pruned.
        features: cached encoder states and teacher logits of the calibration pages.
        budget: limits; measured ones are not looked at.
        granularity: what structured baselines remove: `sublayers`, or `heads` and widths.
        seed: of every random choice.
        solve: the integer program: the feasible plan of largest total worth, from the worth of
            every step by name: a sub-layer (`C3`), or at `heads` each further head (`C3:2`) and
            each further width (`M1:512`).
        sweep: leads walks over many plans.
        most_questions: calibration questions, drawn from the features by the seed.
        most_generations: bound on the generations of an evolution; None leaves the paper's number.
    """

    teacher: Teacher
    features: Features
    budget: Budget
    granularity: Granularity
    seed: int
    solve: Callable[[Mapping[str, float]], Plan]
    sweep: Sweep
    most_questions: int = _QUESTIONS
    most_generations: int | None = None

    @cached_property
    def units(self) -> Units:
        """What structured baselines remove."""
        return Units(self.teacher.shape.decoder, self.granularity)

    @cached_property
    def questions(self) -> tuple[int, ...]:
        """Calibration questions as indices of the features' examples, in an order by the seed."""
        return tuple(self.features.drawn(self.most_questions, "calibration", self.seed))

    @property
    def sample(self) -> Sample:
        """The calibration questions as the sample that discovery runs on."""
        return self.features.sample(self.questions, self.teacher.device)

    def fits(self, plan: Plan) -> bool:
        """Whether a plan keeps the budget; whether it reads the page is not looked at."""
        return self.budget.admits(plan, self.teacher.shape)

    def keeps_budget(self, kept: Kept) -> bool:
        """Whether the plan of some units keeps the budget; quicker than `fits`, in integers too."""
        counts: dict[SubLayer, int] = {}
        for index in kept:
            sublayer = self.units.all[index].sublayer
            counts[sublayer] = counts.get(sublayer, 0) + 1
        return all(
            sum(costs[one.kind][count] for one, count in counts.items()) <= capacity
            for capacity, costs in self._limits
        )

    @cached_property
    def _limits(self) -> list[tuple[int, dict[Kind, list[int]]]]:
        """What units may cost under each limit, and what the first n of a sub-layer cost."""
        found = []
        shape, generation = self.teacher.shape, self.budget.generation
        for limit in self.budget.limits:
            if limit.measured:
                continue
            counting: Any = limit.accounting
            nothing = cost(Plan(), shape, counting, generation)
            costs = {
                sublayer.kind: [
                    _amount(
                        limit.quantity, sublayer_cost(sublayer.kind, n, shape, counting, generation)
                    )
                    for n in (0, *self.units.sizes(sublayer))
                ]
                for sublayer in self.units.by_sublayer
                if sublayer.layer == 0
            }
            found.append((limit.maximum - limit.used(nothing), costs))
        return found


@dataclass(frozen=True)
class Proposal:
    """What a baseline proposes: a student to distil.

    Attributes:
        plan: what the student keeps; the whole decoder where single weights are pruned.
        label: tells several proposals of one baseline apart, its first word names their row in a
            table (`mint18 C2 S3`); empty where there is one.
        scores: the baseline's number per unit, by name; empty where it has none.
        ranking: neurons, best first, by which the plan's widths are cut, by feed-forward; those
            that are missing are ranked as `build_student` ranks them.
        masks: which weights stay, where single weights are pruned.
        notes: what a reader of the result table must know.
        passes: forward and backward passes of one question that were spent.
    """

    plan: Plan
    label: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    ranking: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    masks: Masks | None = None
    notes: tuple[str, ...] = ()
    passes: int = 0

    @property
    def neurons(self) -> NeuronOrder:
        """The ranking as `build_student` takes it."""
        return {SubLayer.parse(name): order for name, order in self.ranking.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the proposal as plain JSON; masks by their fingerprint."""
        return {
            "plan": str(self.plan),
            "label": self.label,
            "scores": dict(self.scores),
            "ranking": {name: list(order) for name, order in self.ranking.items()},
            "masks": None if self.masks is None else self.masks.fingerprint,
            "notes": list(self.notes),
            "passes": self.passes,
        }

    @classmethod
    def from_json(cls, data: Any, masks: Masks | None = None) -> Proposal:
        """Read what `to_json` wrote; masks are kept in a file of their own.

        Raises:
            DataError: a field is missing or unknown.
            PlanError: the plan cannot be read.
        """
        values = record_fields(cls, data)
        values["plan"] = Plan.parse(values["plan"])
        values["ranking"] = {name: tuple(order) for name, order in values["ranking"].items()}
        values["notes"] = tuple(values["notes"])
        values["masks"] = masks
        return cls(**values)


def _amount(quantity: str, spent: ScopeCost) -> int:
    return spent.parameters if quantity == "parameters" else spent.macs


def proposal(
    case: Case,
    kept: Kept,
    *,
    scores: Mapping[str, float] | None = None,
    ranking: NeuronOrder | None = None,
    notes: Iterable[str] = (),
    passes: int = 0,
) -> Proposal:
    """Return the proposal of some kept units; the ranking of feed-forwards cut in width stays."""
    plan = case.units.plan(kept)
    cut = [sublayer for sublayer, keep in plan.kept if keep.width is not None]
    orders = {one.name: tuple(ranking[one]) for one in cut if ranking and one in ranking}
    return Proposal(plan, "", scores or {}, orders, None, tuple(notes), passes)


def by_cost(case: Case, scores: Sequence[float]) -> list[list[int]]:
    """Return the units by score per cost, lowest first; ties remove what runs later first.

    Args:
        case: units and limits.
        scores: one number per unit, not negative.
    """
    shape, units = case.teacher.shape, case.units
    whole = case.budget.slack(units.plan(units.everything), shape)
    largest = {limit.name: max(limit.maximum, 1) for limit in case.budget.limits}
    ratios = []
    for index, score in enumerate(scores):
        # of a feed-forward's steps this is always the last one: all of them cost alike
        without = units.less(units.everything, [index])
        left = case.budget.slack(units.plan(without), shape)
        price = sum((left[name] - whole[name]) / largest[name] for name in whole)
        ratios.append(score / max(price, 1e-12))  # what no limit counts goes last
    return [[i] for i in sorted(range(len(ratios)), key=lambda i: (ratios[i], -i))]


def remove(case: Case, groups: Sequence[Sequence[int]]) -> tuple[Kept, list[str]]:
    """Remove groups of units in order until the budget is met; take back what still fits.

    Args:
        case: units and limits.
        groups: units that go together, first to go first.

    Returns:
        What is kept, and notes.

    Raises:
        InfeasibleError: everything that may go is gone and the budget is not met.
    """
    units, kept = case.units, case.units.everything
    gone: list[Sequence[int]] = []
    notes: list[str] = []
    for group in groups:
        if case.keeps_budget(kept):
            break
        left = units.less(kept, group)
        if not left & units.readers:
            notes.append(
                f"{units.names(group)} would go next and is kept: nothing else reads the page"
            )
            continue
        kept = left
        gone.append(group)
    if not case.keeps_budget(kept):
        raise infeasible(case, kept)
    kept, back = taken_back(case, kept, gone)
    return kept, notes + back


def taken_back(case: Case, kept: Kept, gone: Sequence[Sequence[int]]) -> tuple[Kept, list[str]]:
    """Keep what still fits of the groups that went, last removed first; also return a note."""
    units, back = case.units, []
    for group in reversed(gone):
        grown = units.more(kept, group)
        if case.keeps_budget(grown):
            kept = grown
            back.append(units.names(group))
    return kept, [f"fits the budget after all and is kept: {', '.join(back)}"] if back else []


def fill(case: Case, kept: Kept, order: Iterable[int]) -> Kept:
    """Keep more units, in the given order, as long as they fit.

    A unit is passed over where, with it, no unit that reads the page could be kept any more. Units
    of one sub-layer cost alike, so after one that does not fit the others are not tried.

    Raises:
        InfeasibleError: nothing that reads the page fits.
    """
    units = case.units
    first = [some[0] for some in units.by_sublayer.values() if some[0] in units.readers]

    def possible(one: Kept) -> bool:
        if one & units.readers:
            return case.keeps_budget(one)
        return any(case.keeps_budget(units.more(one, [reader])) for reader in first)

    if not possible(kept):
        raise infeasible(case, units.more(kept, first[:1]))
    full: set[SubLayer] = set()
    for index in order:
        sublayer = units.all[index].sublayer
        grown = units.more(kept, [index])
        if sublayer in full or grown == kept:
            continue
        if possible(grown):
            kept = grown
        else:
            full.add(sublayer)
    return kept


def infeasible(case: Case, kept: Kept) -> InfeasibleError:
    """Say that the smallest plan of a rule is beyond the budget, with the numbers."""
    plan = case.units.plan(kept)
    slack = case.budget.slack(plan, case.teacher.shape)
    over = "; ".join(f"{name}: {-left:,} too many" for name, left in slack.items() if left < 0)
    return InfeasibleError(
        f"The smallest plan of this rule, {str(plan)!r}, does not keep the budget "
        f"({over or 'the search refuses it'}); allow more, or remove heads and widths"
    )
