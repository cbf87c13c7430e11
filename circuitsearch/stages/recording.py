"""What the report tells beside the result files: command, environment, answers side by side.

Page images leave the search's folder only when somebody mails the report around, so pages of a
user are put into it only where the search file says so (`report.pages`); rendered ones always are.
"""

from __future__ import annotations

import io
import os
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version

import torch

from circuitsearch import __version__
from circuitsearch.config import RenderedData, SearchConfig
from circuitsearch.core.plan import Plan
from circuitsearch.show.report_record import Asked, Record, Said, choose, outcomes
from circuitsearch.show.rows import ResultRow
from circuitsearch.students.speed import where
from circuitsearch.teacher.documents.records import Page
from circuitsearch.workspace import CONFIG_FILE, Workspace

from .training import StudentTrainer

__all__ = ["record_of"]

_SHOWN = 6  # questions with both models' answers
_SIZE = (560, 800)  # largest width and height of a page in the report, pixels
_COLORS = 16  # four bits per pixel keep six scanned pages below two megabytes;
_SMALL = 2**16  # pages of so few pixels keep their colours
_PACKAGES = ("torch", "transformers", "optuna", "numpy", "scipy", "networkx", "matplotlib")


def record_of(
    work: Workspace,
    trainer: StudentTrainer,
    rows: Sequence[ResultRow],
    pages: Sequence[Page],
    best: str,
) -> Record:
    """Return what `report.json` holds for a finished search.

    Args:
        work: the search.
        trainer: its trainer; the answers are served from file.
        rows: the final comparison.
        pages: the final pages.
        best: name of the row whose answers are shown beside the teacher's.
    """
    config = work.config
    row = next(one for one in rows if one.name == best)
    seed, steps = config.final.seeds[0], config.final_steps
    _, teacher = trainer.answered_teacher()
    _, student = trainer.answered(
        Plan.parse(row.plan), row.source, seed=seed, steps=steps, split="final", phase="full"
    )
    groups = outcomes(teacher, student)
    known = {question.id: (question, page) for page in pages for question in page.questions}
    shown = isinstance(config.data, RenderedData) or config.report.pages
    asked = []
    for one, other in choose(groups, _SHOWN):
        question, page = known[one.question]
        asked.append(
            Asked(
                question=question.text,
                page=page.id,
                golds=one.golds,
                teacher=Said.of(one),
                student=Said.of(other),
                image=_png(page) if shown else None,
            )
        )
    settings = config.to_json()
    settings["search"]["storage"] = None  # its URL may hold a password
    return Record(
        command=_command(config),
        environment=_environment(trainer),
        settings=settings,
        student=f"{best}, seed {seed}",
        outcomes={name: len(group) for name, group in groups.items()},
        asked=tuple(asked),
    )


def _command(config: SearchConfig) -> str:
    """Return the command that runs the search anew, into a folder of its own."""
    again = config.output.with_name(f"{config.output.name}-again")
    words = ["circuitsearch", "run", str(config.output / CONFIG_FILE), "-o", f"output={again}"]
    if config.search.storage is not None:  # the study there would be gone on with
        words += ["-o", "search.storage=null"]
    return f"OMP_NUM_THREADS={torch.get_num_threads()} {shlex.join(words)}"


def _environment(trainer: StudentTrainer) -> dict[str, str]:
    """Return versions and hardware; no name of the machine or of its user."""
    found = {"circuitsearch": __version__, "Python": platform.python_version()}
    found |= {name: version(name) for name in _PACKAGES}
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["device"] = where(trainer.teacher.device)
    found["cores"] = str(os.cpu_count() or "unknown")
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not POSIX, or it does not tell
        return found
    return {**found, "memory": f"{memory / 2**30:.1f} GiB"}


def _png(page: Page) -> bytes:
    """Return a page as a small PNG."""
    image = page.image()
    image.thumbnail(_SIZE)
    if image.width * image.height > _SMALL:
        image = image.quantize(_COLORS)
    drawn = io.BytesIO()
    image.save(drawn, format="PNG", optimize=True)
    return drawn.getvalue()
