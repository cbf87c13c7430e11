"""`circuitsearch compare`: two predictions files on the same questions, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuitsearch.core.difference import DRAWS

from .shell import Json, command, emit, people

if TYPE_CHECKING:
    from circuitsearch.core.answers import Answers

__all__ = ["compare_command"]


@command
def compare_command(
    first: Annotated[Path, typer.Argument(metavar="A.jsonl", help="Predictions of one student.")],
    second: Annotated[Path, typer.Argument(metavar="B.jsonl", help="Predictions of another.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="ANLS as in its paper: one half scores 0.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    draws: Annotated[int, typer.Option(min=1, help="Draws of the bootstrap.")] = DRAWS,
    json: Json = False,
) -> None:
    """Compare two predictions files: difference of mean ANLS, overall and per family.

    A file may hold several runs one after the other (`cat`), one per training seed.
    """
    from circuitsearch.core.answers import read_answers
    from circuitsearch.teacher.comparison import compare_answers

    sides = read_answers(first), read_answers(second)
    found = compare_answers(*sides, rule="strict" if strict else "rrc", seed=seed, draws=draws)
    if json:
        emit(
            {
                "A": _about(first, sides[0]),
                "B": _about(second, sides[1]),
                "anls": "strict" if strict else "rrc",
                "seed": seed,
                "draws": draws,
                "differences": {name: one.to_json() for name, one in found.items()},
            }
        )
        return
    from circuitsearch.show.compared import print_comparison

    names = (_name(first, sides[0]), _name(second, sides[1]))
    print_comparison(found, names, people())


def _about(path: Path, runs: Sequence[Answers]) -> dict[str, object]:
    return {
        "file": str(path),
        "plan": runs[0].plan,
        "steps": runs[0].steps,
        "split": runs[0].split,
        "seeds": sorted(run.seed for run in runs),
    }


def _name(path: Path, runs: Sequence[Answers]) -> str:
    seeds = ", ".join(str(run.seed) for run in sorted(runs, key=lambda run: run.seed))
    return f"{path}: {runs[0].plan or '(empty)'}, {runs[0].steps:,} steps, seed {seeds}"
