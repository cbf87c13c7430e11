"""What a search starts from: teacher, pages, plan space, cached features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from circuitsearch.config import SPLITS, DocVQAData, RenderedData, RowsData
from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.errors import ConfigError, DataError, raise_together
from circuitsearch.core.files import alone, content_hash, write_json
from circuitsearch.core.plan import Plan
from circuitsearch.core.scores import Scores
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.search.worths import best_heads
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.students.features.prepare import feature_bytes
from circuitsearch.students.fitting import fit_replacements
from circuitsearch.students.replacements import FITTED, Replacements
from circuitsearch.teacher.answering import decoding_problems
from circuitsearch.teacher.documents.collate import examples, unusable
from circuitsearch.teacher.documents.docvqa import LoadedPages, load_docvqa
from circuitsearch.teacher.documents.huggingface import load_rows
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.documents.splits import split_pages
from circuitsearch.teacher.documents.synthetic import rendered_pages
from circuitsearch.teacher.loading import Teacher, load_teacher
from circuitsearch.workspace import Workspace

from .speeds import StudentSpeeds

__all__ = ["component_effects", "compute_features", "documents", "fit", "load", "plan_space"]


def load(work: Workspace) -> Teacher:
    """Load the teacher onto the device."""
    device = work.processes.device(work.config.device)
    with work.say.stage(f"loading the teacher {work.config.teacher}"):
        return load_teacher(work.config.teacher, device=device)


def plan_space(work: Workspace, teacher: Teacher, scores: Callable[[], Scores]) -> Space:
    """Resolve the budget against the teacher and refuse it when nothing fits.

    Where the budget has measured limits, a few plans are measured first: the whole teacher, of
    which shares are taken, the smallest legal student, and those that predictions are fitted to.

    Args:
        work: The search.
        teacher: The teacher.
        scores: Gives the scores by which heads are ordered; called only when an order is needed.

    Raises:
        InfeasibleError: No legal student fits.
    """
    chosen = work.config.space
    named = Plan.parse(chosen.within or "").sublayers
    choices = Choices(
        chosen.attention,
        tuple(chosen.widths),
        tuple(chosen.replacements),
        within=tuple(one.name for one in named),
    )
    specs = [limit.spec() for limit in work.config.budget]
    speeds = StudentSpeeds(work, teacher)
    measured = any(spec.measured for spec in specs)
    if measured:
        _check_unmeasured(work, teacher, specs, choices)
    whole = speeds.of(Plan.full(teacher.shape.decoder.layers)).amounts() if measured else {}
    budget = Budget.resolve(specs, teacher.shape, work.config.generation.counted(), whole)
    predictions = speeds.predictions(budget, choices)
    space = Space(teacher.shape, budget, choices, predictions)
    space.check(speeds.of(space.smallest()[0]).amounts() if measured else None)
    if chosen.attention != "counts":
        return space
    order = best_heads(space, component_effects(scores()))
    return Space(teacher.shape, budget, replace(choices, heads=order), predictions)


def _check_unmeasured(
    work: Workspace, teacher: Teacher, specs: Sequence[LimitSpec], choices: Choices
) -> None:
    """Refuse what is misspelt, or impossible by arithmetic alone, before anything is measured."""
    Budget.resolve(specs, teacher.shape, whole=dict.fromkeys((one.name for one in specs), 1))
    if counted := [spec for spec in specs if not spec.measured]:
        budget = Budget.resolve(counted, teacher.shape, work.config.generation.counted())
        Space(teacher.shape, budget, choices).check()


def component_effects(scores: Scores) -> dict[str, float]:
    """Return each component's measured effect, or its score where it was not patched.

    Raises:
        ConfigError: A component has neither.
    """
    found = {}
    for entry in scores.components:
        value = entry.effect if entry.effect is not None else entry.score
        if value is None:
            raise ConfigError(f"scores: component {entry.component} has neither score nor effect")
        found[entry.component] = value
    return found


def fit(work: Workspace, teacher: Teacher, features: Features) -> Replacements | None:
    """Fit what stands in for sub-layers to the teacher; None when the space has no such choice."""
    names = [name for name in work.config.space.replacements if name in FITTED]
    if not work.config.space.replacements:
        return None
    key = content_hash([teacher.fingerprint, features.key, names])
    path = work.config.cached / f"replacements-{key}.safetensors"
    if not path.exists():
        with alone(path), work.say.stage("fitting replacements"):
            if not path.exists():  # another worker may have fitted them meanwhile
                sublayers = teacher.decoder.sublayers
                fit_replacements(teacher.decoder, features, sublayers, names=names).save(path)
    return replace(Replacements.load(path), fitted_to=key).to(teacher.device)


def documents(work: Workspace, teacher: Teacher) -> dict[str, list[Page]]:
    """Return the pages of every split, all of them usable by the teacher.

    Raises:
        DataError: Naming the rows that cannot be used, unless `data.faults` says to skip them.
    """
    data, seed = work.config.data, work.config.seed
    if isinstance(data, RenderedData):
        pages = {name: rendered_pages(getattr(data, name), f"{name}-{seed}") for name in SPLITS}
    else:
        with work.say.stage(f"reading {data.path}"):
            loaded = _loaded(data)
        dealt = [list(one.pages) for one in loaded]
        skipped = [line for one in loaded for line in one.skipped]
        if data.faults == "skip":
            for place, kept in enumerate(dealt):
                dealt[place], faults = _usable(kept, teacher)
                skipped += faults
        if skipped and work.processes.is_main:
            path = work.folder / "skipped.json"
            write_json(path, skipped)
            work.say.note(f"{len(skipped)} rows skipped, listed in {path}")
        pages = split_pages(dealt[0], {name: data.shares[name] for name in data.shares}, seed)
        if len(dealt) > 1:
            pages = {"train": _unseen(work, dealt[1], dealt[0]), **pages}
    examples([page for split in pages.values() for page in split], teacher.tokens)
    return pages


def _loaded(data: DocVQAData | RowsData) -> list[LoadedPages]:
    """Read the pages to deal out and, where they are a file of their own, those to distil on."""
    if isinstance(data, RowsData):
        return [load_rows(data.path, split=data.split, columns=data.columns, faults=data.faults)]
    found = [load_docvqa(data.path, data.images, faults=data.faults)]
    if data.train is not None:
        found.append(load_docvqa(data.train, data.train_images, faults=data.faults))
    return found


def _unseen(work: Workspace, train: Sequence[Page], held: Sequence[Page]) -> list[Page]:
    """Return the pages to distil on that share no document and no image with the others.

    Raises:
        DataError: If none is left.
    """
    documents = {page.document for page in held}
    images = {page.source.fingerprint() for page in held}
    kept = [
        page
        for page in train
        if page.document not in documents and page.source.fingerprint() not in images
    ]
    if not kept:
        raise DataError(
            "data.train: every page is one of a document that data.path holds, too; give files "
            "without common documents"
        )
    if len(kept) < len(train):
        work.say.note(
            f"{len(train) - len(kept)} of {len(train)} pages of data.train are left out: their "
            "documents or images are also in data.path"
        )
    return kept


def _usable(pages: Sequence[Page], teacher: Teacher) -> tuple[list[Page], list[str]]:
    """Drop the questions that the teacher cannot take; return what is left and the reasons."""
    kept, faults = [], []
    for page in pages:
        reasons = [unusable(question, teacher.tokens) for question in page.questions]
        faults += [reason for reason in reasons if reason is not None]
        fit = [q for q, reason in zip(page.questions, reasons, strict=True) if reason is None]
        if fit:
            kept.append(replace(page, questions=tuple(fit)))
    return kept, faults


def compute_features(
    work: Workspace, teacher: Teacher, pages: Mapping[str, Sequence[Page]]
) -> dict[str, Features]:
    """Compute or open the features of the splits that students meet.

    Raises:
        ConfigError: The teacher's generation config asks for what students are not measured with.
    """
    problems = decoding_problems(teacher.model.generation_config)
    raise_together(problems, ConfigError, f"Teacher {teacher.name!r}: generation_config")
    names, settings = ("train", "select", "final"), work.config
    allowed = int(settings.cache_gigabytes * 10**9)
    needed = sum(feature_bytes(teacher, pages[one], settings.cache_precision) for one in names)
    if needed > allowed:  # before the first of them is computed
        raise ConfigError(
            f"Features of all pages would take {needed / 1e9:,.1f} GB, cache_gigabytes allows "
            f"{allowed / 1e9:,.1f}; use fewer pages, cache_precision: bfloat16, or raise it"
        )
    made = {}
    for name in names:
        with work.say.stage(f"encoding pages ({name})") as tell:
            made[name] = prepare_features(
                teacher,
                pages[name],
                settings.cached / "features",
                max_bytes=allowed,
                precision=settings.cache_precision,
                temperatures=(1.0, settings.distill.temperature),
                progress=tell,
            )
    return made
