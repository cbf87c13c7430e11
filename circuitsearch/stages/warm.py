"""What is known before the first training: the sampler's prior and the plans to start with.

Every source proposes plans by the same integer program over its own numbers (`search.worths`):

    scores    effects of the teacher's components
    edges     the circuit graph's edges, worth something when both ends stay
    pairs     effects and pair effects on the elastic teacher: what is needed after recovery
    elastic   the ranking by what the elastic teacher lets expect (`Pipeline.predicted`)

Two kinds of sources follow rules of their own: `findings`, the published analyses of the teacher,
which say what a student has to keep (`discovery.analyses.plan_rule`), and published pruning methods
(`students.baselines`), each under its own name and as near as the space comes to its plan.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError, PlanError
from circuitsearch.core.files import content_hash, write_json
from circuitsearch.core.findings import Finding
from circuitsearch.core.plan import Plan
from circuitsearch.core.scores import Scores
from circuitsearch.discovery.analyses.plan_rule import Evidence, plans_from
from circuitsearch.discovery.patching.components import effects, pair_effects
from circuitsearch.discovery.sample import make_sample
from circuitsearch.search.knapsack import best_within, pool, sweep_budget
from circuitsearch.search.nearest import nearest
from circuitsearch.search.program import Interaction
from circuitsearch.search.samplers import Prior
from circuitsearch.search.space import Space
from circuitsearch.search.worths import edge_worths, pair_worths, unit_worths
from circuitsearch.students.baselines import Proposal
from circuitsearch.students.features import Features
from circuitsearch.students.replacements import Replacements
from circuitsearch.students.walk import Walk
from circuitsearch.teacher.decoders import ResidualDecoder
from circuitsearch.teacher.documents.records import Page, fingerprint
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace

from .inputs import component_effects
from .ranking import Ranking, plan_losses, weights_hash

__all__ = ["WarmPlans", "predict", "replaced_plans", "warm_start", "worths"]

WarmPlans = list[tuple[Plan, str]]
"""Plans to distil first, with the source that proposed each."""
_RULED = "decoder parameters (paper)"
"""The limit that the rule of findings reads."""
Worths = tuple[Sequence[float], Sequence[Interaction]]
"""Worths of units, and of units that stay together."""


def worths(
    work: Workspace,
    teacher: Teacher,
    space: Space,
    scores: Scores,
    features: Mapping[str, Features],
    replacements: Replacements | None,
) -> dict[str, float]:
    """Return what every unit is worth by the teacher's effects."""
    replaced = replaced_worths(work, teacher, space, features["select"], replacements)
    return unit_worths(space, component_effects(scores), replaced)


def predict(
    work: Workspace, space: Space, worths: Mapping[str, float], ranking: Ranking
) -> dict[str, Any]:
    """Return the predicted curves of quality against budget, and write them as `predicted.json`.

    Args:
        work: The search.
        space: The feasible plans.
        worths: What every unit is worth by the teacher's effects.
        ranking: Plans by what they are predicted to reach, best first; may be empty.

    Returns:
        At every tenth of the budget, in percent: under `curve` the best plan by the sum of effects,
        in units of their metric, by integer program; under `ranked` the best plan of the ranking,
        with its loss.
    """
    curve = sweep_budget([worths[name] for name in space.names], space)
    ranked = best_within(ranking, space)
    told = {
        "of": f"sum of effects ({work.config.scores.metric})",
        "curve": [{"percent": p.percent, "plan": str(p.plan), "worth": p.worth} for p in curve],
        "ranked": [{"percent": p, "plan": str(plan), "loss": loss} for p, plan, loss in ranked],
    }
    write_json(work.folder / "predicted.json", told)
    return told


def warm_start(
    work: Workspace,
    teacher: Teacher,
    space: Space,
    *,
    prior: Prior,
    circuit: Mapping[str, Any],
    elastic: ResidualDecoder | None,
    pages: Sequence[Page],
    findings: Callable[[], Mapping[str, Finding]],
    proposals: Callable[[Sequence[str]], Sequence[tuple[str, Proposal]]],
) -> WarmPlans:
    """Return the plans to distil first, each labelled with its source.

    Args:
        work: The search.
        teacher: The teacher.
        space: The feasible plans.
        prior: Worths of units, and plans by what they are predicted to reach, best first.
        circuit: The circuit graph as node-link JSON.
        elastic: The elastic teacher's decoder.
        pages: Pages on which pairs are measured.
        findings: Runs the published analyses; called where a plan is to follow from them.
        proposals: Asks baselines by name; the first plan of each is taken.
    """
    settings = work.config.search
    known_worths = prior.array(space)
    scored: Worths = ([] if known_worths is None else known_worths.tolist(), ())
    sources: list[tuple[str, int, Callable[[], Worths]]] = [
        ("scores", settings.warm_scores, lambda: scored),
        ("edges", settings.warm_edges, lambda: edge_worths(space, _edges(circuit))),
        (
            "pairs",
            settings.warm_pairs,
            lambda: pair_numbers(work, teacher, space, elastic, pages),
        ),
    ]
    found: WarmPlans = []
    for name, count, worth in sources:
        if count == 0:
            continue
        if name != "scores" and not speaks_of_units(work, space, name):
            work.say.note(f"warm start: {name} speak of whole sub-layers, the units are free heads")
            continue
        values, together = worth()
        known = {plan.hash for plan, _ in found}
        # As many more as are known already, so that a source loses no place to another.
        plans = pool(values, space, count + len(known), interactions=together)
        found += [(plan, name) for plan in plans if plan.hash not in known][:count]
    if settings.warm_findings:
        known = {plan.hash for plan, _ in found}
        derived = (plan for plan in plans_of(space, findings()) if plan.hash not in known)
        found += [(plan, "findings") for plan in islice(derived, settings.warm_findings)]
    if work.config.warm_baselines:
        fill = scored[0] or [0.0] * len(space.units)
        found += _published(work, space, fill, proposals, {plan.hash for plan, _ in found})
    known = {plan.hash for plan, _ in found}
    fresh = [plan for plan, _ in prior.ranking if plan.hash not in known]
    return found + [(plan, "elastic") for plan in fresh[: settings.warm_elastic]]


def speaks_of_units(work: Workspace, space: Space, source: str) -> bool:
    """Whether the numbers of `edges` or `pairs` are of what a plan chooses among.

    Pairs are of whole sub-layers, edges of what the circuit graph has for nodes.
    """
    if not any(part.free for part in space.parts):
        return True
    return source == "edges" and work.config.circuit.level == "heads"


def _published(
    work: Workspace,
    space: Space,
    worths: Sequence[float],
    proposals: Callable[[Sequence[str]], Sequence[tuple[str, Proposal]]],
    known: set[str],
) -> WarmPlans:
    """Return plans of published methods that are not known yet, each under its method's name."""
    found: dict[str, tuple[Plan, str]] = {}
    met: set[str] = set()
    for name, proposal in proposals(work.config.warm_baselines):
        if name not in met:
            plan = nearest(proposal.plan, space, worths)
            found.setdefault(plan.hash, (plan, name))
        met.add(name)
    return [entry for plan_hash, entry in found.items() if plan_hash not in known]


def plans_of(space: Space, findings: Mapping[str, Finding]) -> list[Plan]:
    """Return feasible plans that follow from findings, those of the largest share first.

    The rule spends shares of the decoder's parameters. Where the search limits something else as
    well, or offers less than the rule asks for, smaller shares give way until a plan fits.

    Args:
        space: The feasible plans.
        findings: What analyses found, by name.
    """
    limits = [limit.text for limit in space.budget.limits if limit.name == _RULED]
    shares = (*limits, *(f"{share / 2:g}%" for share in range(200, 0, -1)))
    derived = plans_from(space.shape, Evidence.of(findings), shares)
    plans = dict.fromkeys(plan for one in derived for plan in (one.plan, one.plain))
    return [plan for plan in plans if _offered(space, plan)]


def _offered(space: Space, plan: Plan) -> bool:
    try:
        return space.feasible(plan)
    except PlanError:  # it keeps what is no choice of this space
        return False


def replaced_plans(
    space: Space,
) -> tuple[dict[str, list[SubLayer]], dict[SubLayer, Plan], dict[str, Plan]]:
    """Return what tells the worths of replacements.

    Returns:
        By replacement the sub-layers that it stands for; by such sub-layer the plan that skips it
        alone; by replacement the plan with it alone.
    """
    full = Plan.full(space.shape.decoder.layers)
    units = [unit for unit in space.units if unit.alone]
    gone = {
        unit.name: [s for s in full.sublayers if s <= unit.sublayer]
        if unit.prefix
        else [unit.sublayer]
        for unit in units
    }
    skipped = {s: full.without(s) for s in sorted({s for some in gone.values() for s in some})}
    replaced = {
        unit.name: Plan(
            (
                *(entry for entry in full.kept if entry[0] not in gone[unit.name]),
                (unit.sublayer, unit.keep),
            )
        )
        for unit in units
    }
    return gone, skipped, replaced


def replaced_worths(
    work: Workspace,
    teacher: Teacher,
    space: Space,
    features: Features,
    replacements: Replacements | None,
) -> dict[str, float]:
    """Return what each replacement is worth: by how much less the loss rises than by skipping.

    Measured on the teacher with everything else in place, in nats per answer token. What stands
    for a whole beginning is compared with the *sum* of what skipping each of its sub-layers costs,
    because worths of units add up: the program then sees what the replacement loses against all.
    """
    full = Plan.full(teacher.shape.decoder.layers)
    gone, skipped, replaced = replaced_plans(space)
    if not gone:
        return {}
    plans = [full, *skipped.values(), *replaced.values()]
    fitted = None if replacements is None else replacements.fingerprint
    key = ["replaced", teacher.fingerprint, features.key, [str(plan) for plan in plans], fitted]
    folder = work.config.work / f"replaced-{content_hash(key)}"

    def compute() -> dict[str, float]:
        walk = Walk(teacher.decoder, features, replacements=replacements)
        with work.say.stage("measuring replacements") as tell:
            losses = plan_losses(walk, plans, folder, tell)
        found = dict(zip(plans, losses, strict=True))
        clean = found[full]
        return {
            name: sum(found[skipped[s]] - clean for s in some) - (found[replaced[name]] - clean)
            for name, some in gone.items()
        }

    worths: dict[str, float] = work.kept("replaced", key, compute)
    shutil.rmtree(folder, ignore_errors=True)
    return worths


def pair_numbers(
    work: Workspace,
    teacher: Teacher,
    space: Space,
    elastic: ResidualDecoder | None,
    pages: Sequence[Page],
) -> Worths:
    """Return worths of units and pairs by effects on the elastic teacher (zero ablation, loss).

    Raises:
        ConfigError: There is no elastic teacher.
    """
    if elastic is None:
        raise ConfigError("search.warm_pairs asks for the elastic teacher; set elastic.steps")
    shown = pages[: work.config.circuit.pages]

    def compute() -> dict[str, Any]:
        with work.say.stage("measuring pairs on the elastic teacher"):
            sample = make_sample(teacher, shown)
            names = [sublayer.name for sublayer in elastic.sublayers]
            alone = effects(elastic, sample, names)
            both = pair_effects(elastic, sample)
        return {
            "alone": {name: float(values.mean()) for name, values in alone.items()},
            "pairs": [[*pair, float(values.mean())] for pair, values in both.items()],
        }

    key = ["pairs", weights_hash(elastic), fingerprint(shown)]
    data = work.kept("pairs", key, compute)
    both = {(one, other): value for one, other, value in data["pairs"]}
    return pair_worths(space, data["alone"], both)


def _edges(circuit: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Return the circuit's edges by component names, effect where measured, else score."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for edge in circuit["edges"]:
        value = edge.get("effect", edge.get("score"))
        if value is not None:
            found[edge["source"], edge["target"]] += float(value)
    return dict(found)
