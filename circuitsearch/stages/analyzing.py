"""The published analyses of the teacher: each finding kept on its own, all written out together."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from circuitsearch import __version__
from circuitsearch.core.errors import ConfigError, choice_problem, raise_together
from circuitsearch.core.findings import Finding
from circuitsearch.discovery.analyses.material import Material
from circuitsearch.discovery.analyses.registry import ANALYSES, Analysis
from circuitsearch.progress import Work
from circuitsearch.show.analysis_files import write_findings
from circuitsearch.teacher.documents.records import Page, fingerprint
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import CONFIG_FILE, Workspace

__all__ = ["ANALYSES_FOLDER", "analyze", "chosen_analyses"]

ANALYSES_FOLDER = "analyses"
"""Folder of the findings inside a search's folder."""

_RECORD = 1  # raised when findings on file no longer mean what the analyses mean now


def analyze(
    work: Workspace,
    teacher: Teacher,
    pages: Mapping[str, Sequence[Page]],
    only: Sequence[str] | None = None,
    analyses: Mapping[str, Analysis] = ANALYSES,
) -> dict[str, Finding]:
    """Run the analyses that are not on file yet, and write findings, charts and their page.

    Args:
        work: The search.
        teacher: The teacher.
        pages: Pages by split; `score` is measured on, what must hold twice is tried on `select`.
        only: Names of analyses; those that they read are run, too. None means all.
        analyses: Every analysis by name.

    Returns:
        The findings of the analyses that were asked for and of those that they read, by name.

    Raises:
        ConfigError: A name is unknown.
    """
    order = chosen_analyses(only, analyses)
    visible: dict[str, Finding] = {}
    progress = _Progress()
    material = _material(work, teacher, pages, progress, visible)
    keys = _keys(teacher, material, analyses)
    found: dict[str, Finding] = {}
    with work.say.budget("analyses") as spent:
        for done, name in enumerate(order):
            spent(done, len(order), name)
            analysis = analyses[name]
            # what an analysis has not said it reads is not in its key, so it must not see it
            visible.clear()
            visible.update({earlier: found[earlier] for earlier in analysis.after})
            found[name] = _finding(work, name, keys[name], analysis, material, progress)
        spent(len(order), len(order))
    # what earlier calls found under the same settings stays on the page
    known = {name: found.get(name) or _on_file(work, name, keys[name]) for name in analyses}
    written = {name: finding for name, finding in known.items() if finding is not None}
    with work.say.stage("drawing charts"):
        write_findings(work.folder / ANALYSES_FOLDER, written, _facts(work, teacher, material))
    return found


def chosen_analyses(
    only: Sequence[str] | None, analyses: Mapping[str, Analysis] = ANALYSES
) -> list[str]:
    """Return the analyses to run, each behind those that it reads.

    Args:
        only: Names; None means all.
        analyses: Every analysis by name.

    Raises:
        ConfigError: A name is unknown; all of them together, each with the nearest known one.
    """
    asked = [*analyses] if only is None else only
    problems = [choice_problem("name", n, [*analyses]) for n in asked if n not in analyses]
    raise_together(problems, ConfigError, "Analyses")
    order: list[str] = []

    def add(name: str) -> None:
        for earlier in analyses[name].after:
            add(earlier)
        if name not in order:
            order.append(name)

    for name in analyses:
        if name in asked:
            add(name)
    return order


class _Progress:
    """Hands the progress of engines to the stage that runs now."""

    tell: Work

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.tell(done, total, stage)


def _material(
    work: Workspace,
    teacher: Teacher,
    pages: Mapping[str, Sequence[Page]],
    progress: _Progress,
    found: Mapping[str, Finding],
) -> Material:
    """Return what every analysis is given; one object, so that pages are encoded once."""
    most = work.config.analyses.pages or None
    return Material(
        teacher,
        tuple(pages["score"][:most]),
        tuple(pages["select"][:most]),
        work.config.generation.counted(),
        seed=work.config.seed,
        progress=progress,
        found=found,
    )


def _keys(
    teacher: Teacher, material: Material, analyses: Mapping[str, Analysis]
) -> dict[str, list[Any]]:
    """Return what each finding depends on; the keys of the findings it reads are part of it."""
    lengths = [material.generation.prompt, material.generation.passes]
    parts = [fingerprint(material.pages), fingerprint(material.others)]
    about = [_RECORD, teacher.fingerprint, *parts, lengths, material.seed]

    def key(name: str) -> list[Any]:
        return ["analysis", name, *about, [key(earlier) for earlier in analyses[name].after]]

    return {name: key(name) for name in analyses}


def _file(name: str) -> str:
    return f"analysis-{name}"


def _finding(
    work: Workspace,
    name: str,
    key: list[Any],
    analysis: Analysis,
    material: Material,
    progress: _Progress,
) -> Finding:
    """Return one finding, from file when its inputs are unchanged."""

    def compute() -> dict[str, Any]:
        with work.say.stage(f"{name}: {analysis.about}") as progress.tell:
            return analysis.run(material).to_json()

    return Finding.from_json(work.kept(_file(name), key, compute))


def _on_file(work: Workspace, name: str, key: list[Any]) -> Finding | None:
    kept = work.found(_file(name), key)
    return None if kept is None else Finding.from_json(kept)


def _facts(work: Workspace, teacher: Teacher, material: Material) -> dict[str, Any]:
    """Return what the findings are about, without dates: equal runs write equal files."""
    config = work.config
    return {
        "title": f"What Donut-MINT claims, asked of the teacher {config.teacher}",
        "source": "Donut-MINT, arXiv 2509.26235",
        "command": shlex.join(["circuitsearch", "analyze", str(work.folder / CONFIG_FILE)]),
        "teacher": config.teacher,
        "teacher fingerprint": teacher.fingerprint,
        "measured on": _amount(material.pages),
        "tried again on": _amount(material.others),
        "costs counted for": f"{material.generation.prompt} prompt tokens, "
        f"{material.generation.passes} passes",
        "seed": material.seed,
        "versions": {"circuitsearch": __version__, "torch": torch.__version__},
    }


def _amount(pages: Sequence[Page]) -> str:
    questions = sum(len(page.questions) for page in pages)
    return f"{questions:,} questions on {len(pages):,} pages"
