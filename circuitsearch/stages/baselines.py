"""Asking published pruning methods for the students that they would distil."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuitsearch.core.errors import (
    ConfigError,
    DataError,
    InfeasibleError,
    choice_problem,
    raise_together,
)
from circuitsearch.core.files import content_hash
from circuitsearch.core.plan import Plan
from circuitsearch.search.exhaustive import sweep
from circuitsearch.search.knapsack import solve
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.students.baselines import BASELINES, Case, Masks, Proposal, widths
from circuitsearch.students.features import Features
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace

__all__ = ["propose"]

_RULES = 2  # raised when a method on file would no longer propose the same


def propose(
    work: Workspace,
    teacher: Teacher,
    features: Features,
    space: Space,
    names: Sequence[str],
) -> list[tuple[str, Proposal]]:
    """Return what baselines propose under the space's budget, from file where they ran before.

    They remove whole sub-layers where the space knows nothing else, and heads and steps of widths
    otherwise. A baseline that has no student under the budget is left out with a note.

    Args:
        work: the search.
        teacher: what is pruned.
        features: calibration pages.
        space: gives budget and granularity.
        names: rows of `students.baselines.BASELINES`.

    Returns:
        (name, proposal) in the order of the names; several of one name where it proposes several.

    Raises:
        ConfigError: unknown names, all together.
    """
    problems = [choice_problem("baseline", n, [*BASELINES]) for n in names if n not in BASELINES]
    raise_together(problems, ConfigError, "Baselines")
    case = _case(work, teacher, features, space)
    return [(name, one) for name in names for one in _kept(work, case, name)]


def _case(work: Workspace, teacher: Teacher, features: Features, space: Space) -> Case:
    """Return the task of all baselines."""
    coarse = space.choices.coarse
    choices = Choices() if coarse else Choices("counts", widths(teacher.shape.decoder))
    counted = [limit for limit in space.budget.limits if not limit.measured]
    own = Space(teacher.shape, replace(space.budget, limits=tuple(counted)), choices)

    def best(worths: Mapping[str, float]) -> Plan:
        bits = solve([worths[name] for name in own.names], own)
        if bits is None:
            raise InfeasibleError("No legal plan keeps the budget; allow more")
        return own.plan(bits)

    return Case(
        teacher=teacher,
        features=features,
        budget=space.budget,
        granularity="sublayers" if coarse else "heads",
        seed=work.config.seed,
        solve=best,
        sweep=sweep,
    )


def _kept(work: Workspace, case: Case, name: str) -> list[Proposal]:
    """Return one baseline's proposals; scores and plans are kept as JSON, masks beside them."""
    key: list[Any] = [
        name,
        _RULES,
        case.teacher.fingerprint,
        case.features.key,
        case.budget.to_json(),
    ]
    key += [case.granularity, case.seed, case.most_questions]
    folder = work.config.work / f"baseline-{name}-{content_hash(key)}"

    def compute() -> dict[str, Any]:
        try:
            with work.say.stage(f"asking the baseline {BASELINES[name].title}"):
                found = BASELINES[name].propose(case)
        except InfeasibleError as error:
            return {"proposals": [], "reason": str(error)}
        for one in found:
            if one.masks is not None:
                one.masks.save(_masks_file(folder, one.masks.fingerprint))
        reason = None if found else "none of its plans keeps the budget"
        return {"proposals": [one.to_json() for one in found], "reason": reason}

    known = work.kept(f"baseline-{name}", key, compute)
    if known["reason"] is not None:
        work.say.note(f"baseline {name}: {known['reason']}")
    try:
        return _with_masks(folder, known)
    except DataError:  # the masks are gone or damaged: they are made again from the same inputs
        return _with_masks(folder, compute())


def _with_masks(folder: Path, known: Mapping[str, Any]) -> list[Proposal]:
    """Read proposals and their masks.

    Raises:
        DataError: masks are missing or damaged.
    """
    proposals = known["proposals"]
    masks = [
        None if data["masks"] is None else Masks.load(_masks_file(folder, data["masks"]))
        for data in proposals
    ]
    return [Proposal.from_json(data, mask) for data, mask in zip(proposals, masks, strict=True)]


def _masks_file(folder: Path, fingerprint: str) -> Path:
    return folder / f"{fingerprint}.safetensors"
