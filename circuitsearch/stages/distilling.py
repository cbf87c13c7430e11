"""Distilling one plan of the user's own, with a search's teacher, pages and trainer."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from circuitsearch.core.errors import ConfigError, PlanError
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.core.text import drop_passwords
from circuitsearch.students.replacements import FITTED
from circuitsearch.students.saving.checkpoint import save_student

from .reporting import card_facts
from .training import StudentTrainer

__all__ = ["distill_plan"]


def distill_plan(
    trainer: StudentTrainer,
    plan: Plan,
    output: Path,
    *,
    search: Path,
    steps: int | None = None,
    seed: int | None = None,
    stock: bool = False,
    overrides: Sequence[str] = (),
) -> Measurement:
    """Distil a plan, measure it on the pages to choose on and save the student.

    Several processes (`trainer.processes`) train together; the main one measures and saves.

    Args:
        trainer: Of the search.
        plan: The plan; it need not be within the search's budget.
        output: Folder for the student.
        search: The search file, named in the model card's command.
        steps: Steps of the training; default those of the search.
        seed: Seed of the training; default that of the search.
        stock: Whether to write a stock model where the plan allows it.
        overrides: What won over the search file, for the model card's command.

    Returns:
        How good the student is.

    Raises:
        PlanError: If the plan does not fit the teacher's decoder, or leaves nothing to train.
        ConfigError: If it replaces sub-layers by what the search does not fit.
        TrainingError: If the training fails.
        StorageError: If the folder cannot be written.
    """
    chosen = plan.fitted(trainer.teacher.shape.decoder)
    if all(keep.replacement in FITTED for _, keep in chosen.kept):
        raise PlanError(
            f"Plan {str(chosen)!r}: it keeps nothing of the teacher's layers, so there is nothing "
            "to train; keep a sub-layer at least, and a cross-attention to read the page: 'S0 C0'"
        )
    offered = trainer.config.space.replacements
    missing = {keep.replacement for _, keep in chosen.kept if keep.replacement in FITTED}
    if missing := missing.difference(offered):
        asked = ", ".join(sorted({*offered, *missing}))
        raise ConfigError(
            f"Plan {str(chosen)!r}: nothing is fitted for {', '.join(sorted(missing))}; set "
            f"space.replacements to [{asked}] in the search file or by -o"
        )
    taken = steps or trainer.config.distill.steps
    used = trainer.config.seed if seed is None else seed
    model = trainer.student(chosen, used, taken)
    command = ["circuitsearch", "distill", str(search), "--plan", str(chosen)]
    command += ["--steps", str(taken), "--seed", str(used), "--output", str(output)]
    command += ["--stock"] * stock
    for one in overrides:
        command += ["--override", drop_passwords(one)]

    def hand_over() -> Measurement:
        about = {"seed": used, "steps": taken}
        made = trainer.measured(chosen, "user", **about, split="select", phase="full")
        facts = card_facts(trainer, made, "select", taken, shlex.join(command))
        save_student(model, trainer.teacher, output, facts=facts, stock="auto" if stock else "no")
        return made

    return trainer.processes.on_main(hand_over)
