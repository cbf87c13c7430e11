"""Asking baselines: the space's budget and units, kept on disk, what cannot be is noted."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from circuitsearch.config import LimitConfig, SearchConfig
from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.errors import ConfigError
from circuitsearch.progress import QuietReporter
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.stages import baselines
from circuitsearch.stages.baselines import propose
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace
from tests.student_fixtures import noise_pages


class Told(QuietReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def features(tiny_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Features:
    return prepare_features(tiny_teacher, noise_pages(4), tmp_path_factory.mktemp("features"))


def config(tmp_path: Path, **options: object) -> SearchConfig:
    limits = [LimitConfig(quantity="parameters", limit="30%")]
    return SearchConfig(name="asked", output=tmp_path / "search", budget=limits, **options)


def space(teacher: Teacher, limit: str, choices: Choices | None = None) -> Space:
    budget = Budget.resolve([LimitSpec("parameters", limit)], teacher.shape)
    return Space(teacher.shape, budget, choices)


NAMES = ["magnitude", "puzzle", "random", "wanda-unstructured", "shortgpt-sublayers"]


def test_proposals_are_kept_and_read_back(
    tmp_path: Path,
    tiny_teacher: Teacher,
    features: Features,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = Workspace(config(tmp_path), QuietReporter())
    whole = space(tiny_teacher, "40%")
    found = propose(work, tiny_teacher, features, whole, NAMES)
    assert list(dict.fromkeys(name for name, _ in found)) == NAMES
    assert sum(name == "random" for name, _ in found) == 20
    for name, one in found:
        assert (one.masks is not None) == (name == "wanda-unstructured")
        assert one.masks is not None or whole.feasible(one.plan)
    with monkeypatch.context() as patched:
        patched.setattr(baselines, "sweep", None)
        patched.setattr(Features, "read", None)
        again = propose(work, tiny_teacher, features, whole, NAMES)
    assert [one.to_json() for _, one in again] == [one.to_json() for _, one in found]
    masks = [one.masks for _, one in again if one.masks is not None]
    assert len(masks) == 1
    # lost or damaged masks are made again
    for spoil in (Path.unlink, lambda path: path.write_bytes(b"damaged")):
        for path in work.config.work.rglob("*.safetensors"):
            spoil(path)
        (_, once_more), *_ = propose(work, tiny_teacher, features, whole, ["wanda-unstructured"])
        assert once_more.masks is not None
        assert once_more.masks.fingerprint == masks[0].fingerprint


def test_heads_where_the_space_has_them_and_notes_where_nothing_fits(
    tmp_path: Path, tiny_teacher: Teacher, features: Features
) -> None:
    told = Told()
    work = Workspace(config(tmp_path), told)
    fine = space(tiny_teacher, "5%", Choices("counts", (8,)))
    found = propose(work, tiny_teacher, features, fine, ["shortgpt", "mint", "taylor"])
    assert [name for name, _ in found] == ["taylor"]
    assert fine.budget.admits(found[0][1].plan, tiny_teacher.shape)
    assert any(keep.heads or keep.width for _, keep in found[0][1].plan.kept)
    assert [note.split(":")[0] for note in told.notes] == ["baseline shortgpt", "baseline mint"]
    assert "too many" in told.notes[0]
    assert "none of its plans keeps the budget" in told.notes[1]


def test_unknown_names_are_refused_with_the_nearest(
    tmp_path: Path, tiny_teacher: Teacher, features: Features
) -> None:
    work = Workspace(config(tmp_path), QuietReporter())
    with pytest.raises(ConfigError, match=r"'wandas'.*did you mean 'wanda'"):
        propose(work, tiny_teacher, features, space(tiny_teacher, "40%"), ["magnitude", "wandas"])
    with pytest.raises(ValidationError, match=r"'evopres'.*did you mean 'evopress'"):
        config(tmp_path, baselines=["evopres"])
    with pytest.raises(ValidationError, match="taylor is listed twice"):
        config(tmp_path, baselines=["taylor", "taylor"])
    assert config(tmp_path, baselines=["taylor"]).baselines == ["taylor"]
    assert config(tmp_path).baselines == []
