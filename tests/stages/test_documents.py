"""DocVQA's protocol: 20/20/60 by document, with the pages to distil on in a file of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from circuitsearch.config import SearchConfig
from circuitsearch.configfile import dump_config, load_config
from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.progress import QuietReporter
from circuitsearch.stages import documents
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.documents.synthetic import rendered_pages
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace
from tests.data_fixtures import write_docvqa

NAMES = {"name": "small", "budget": [{"quantity": "parameters", "limit": "50%"}]}


@dataclass
class Noting(QuietReporter):
    """Remembers what was said."""

    notes: list[str]

    def note(self, text: str) -> None:
        self.notes.append(text)


def dealt(
    folder: Path, teacher: Teacher, data: dict[str, Any]
) -> tuple[dict[str, list[Page]], list[str]]:
    config = SearchConfig.model_validate({**NAMES, "output": folder / "out", "data": data})
    say = Noting([])
    return documents(Workspace(config, say), teacher), say.notes


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("docvqa")
    train = write_docvqa(rendered_pages(4, "protocol"), folder / "t", "train")
    val = write_docvqa(rendered_pages(10, "protocol", first=4), folder / "v", "val", first=4)
    return train, val


def test_validation_is_dealt_20_20_60_and_training_is_another_file(
    tmp_path: Path, tiny_teacher: Teacher, files: tuple[Path, Path]
) -> None:
    train, val = files
    data = {"source": "docvqa", "path": str(val), "train": str(train)}
    pages, notes = dealt(tmp_path, tiny_teacher, data)
    assert {name: len(each) for name, each in pages.items()} == {
        "train": 4,
        "score": 2,
        "select": 2,
        "final": 6,
    }
    assert list(pages) == ["train", "score", "select", "final"]
    found = [page.document for each in pages.values() for page in each]
    assert len(found) == len(set(found))
    assert notes == []
    assert dealt(tmp_path, tiny_teacher, data)[0] == pages


def test_documents_that_are_held_out_are_not_distilled_on(
    tmp_path: Path, tiny_teacher: Teacher, files: tuple[Path, Path]
) -> None:
    _, val = files
    # two pages of the validation file, under new document numbers, and two fresh ones
    leaking = [*rendered_pages(2, "protocol", first=4), *rendered_pages(2, "fresh")]
    train = write_docvqa(leaking, tmp_path / "t", "train", first=100)
    data = {"source": "docvqa", "path": str(val), "train": str(train)}
    pages, notes = dealt(tmp_path, tiny_teacher, data)
    assert len(pages["train"]) == 2
    assert any("2 of 4 pages of data.train are left out" in note for note in notes)
    with pytest.raises(DataError, match=r"data\.train: every page"):
        dealt(tmp_path, tiny_teacher, {**data, "train": str(val)})


def _load(tmp_path: Path, data: dict[str, Any]) -> SearchConfig:
    path = tmp_path / "search.yaml"
    path.write_text(json.dumps({**NAMES, "output": "out", "data": data}))
    config = load_config(path)
    path.write_text(dump_config(config))
    assert load_config(path) == config  # the resolved file reads back the same
    return config


def test_shares_follow_from_where_the_training_pages_are(tmp_path: Path) -> None:
    base = {"source": "docvqa", "path": "val.json"}
    apart = _load(tmp_path, {**base, "train": "train.json"}).data
    assert apart.model_dump()["shares"] == {"score": 0.2, "select": 0.2, "final": 0.6}
    assert set(_load(tmp_path, base).data.model_dump()["shares"]) == {
        "train", "score", "select", "final"
    }  # fmt: skip
    own = {"score": 0.3, "select": 0.3, "final": 0.4}
    assert _load(tmp_path, {**base, "train": "t", "shares": own}).data.model_dump()["shares"] == own


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            {"train": "t", "shares": {"train": 0.1, "score": 0.2, "select": 0.2, "final": 0.5}},
            r"shares\.train: the pages to distil on are in data\.train",
        ),
        ({"shares": {"score": 0.2, "select": 0.2, "final": 0.6}}, "shares: missing train"),
        ({"train": "t", "shares": {"score": 0.2}}, "missing select, final"),
    ],
)
def test_shares_that_contradict_the_files_are_refused(
    tmp_path: Path, data: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        _load(tmp_path, {"source": "docvqa", "path": "val.json", **data})
