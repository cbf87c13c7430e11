"""Which page images the circuit page shows: rendered ones, and one's own only when asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from circuitsearch.config import SearchConfig
from circuitsearch.core.errors import ConfigError
from circuitsearch.discovery.paths.table import PathTable
from circuitsearch.progress import QuietReporter
from circuitsearch.stages import draw_circuit, trace_paths
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace
from tests.tiny import tiny_pages

IMAGE = "data:image/png;base64,"
PAGES: list[Page] = [replace(page, document=page.id) for page in tiny_pages(4)]


def work(folder: Path, data: dict[str, object], **circuit: object) -> Workspace:
    given = {
        "name": "shown",
        "output": folder,
        "data": data,
        "budget": [{"quantity": "parameters", "limit": "30%"}],
        "circuit": {"level": "sublayers", "pages": 2, **circuit},
    }
    return Workspace(SearchConfig.model_validate(given), QuietReporter())


@pytest.fixture(scope="module")
def paths(tiny_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> PathTable:
    rendered = work(tmp_path_factory.mktemp("paths"), {"source": "rendered"})
    return trace_paths(rendered, tiny_teacher, PAGES)


@pytest.mark.parametrize(
    ("source", "asked", "images"),
    [
        ("rendered", None, 1),
        ("docvqa", None, 0),
        ("docvqa", 2, 2),
        ("rendered", 0, 0),
        ("rendered", 9, 4),  # no more than there are
    ],
)
def test_images_of_own_documents_are_shown_only_when_asked_for(
    tiny_teacher: Teacher,
    paths: PathTable,
    tmp_path: Path,
    source: str,
    asked: int | None,
    images: int,
) -> None:
    data = {"source": source, **({"path": "own.json"} if source == "docvqa" else {})}
    made = work(tmp_path / "out", data, shown_pages=asked)
    draw_circuit(made, tiny_teacher, PAGES, paths)
    assert (made.folder / "circuit.html").read_text().count(IMAGE) == images


def test_a_damaged_table_keeps_no_circuit_from_being_drawn(
    tiny_teacher: Teacher, paths: PathTable, tmp_path: Path
) -> None:
    made = work(tmp_path / "out", {"source": "rendered"})
    made.folder.mkdir()
    (made.folder / "result.json").write_text('{"format": 0}')
    draw_circuit(made, tiny_teacher, PAGES, paths)
    assert IMAGE in (made.folder / "circuit.html").read_text()


def test_another_number_of_images_draws_the_same_circuit(
    tiny_teacher: Teacher, paths: PathTable, tmp_path: Path
) -> None:
    kept = []
    for shown in (0, 2):
        made = work(tmp_path / "out", {"source": "rendered"}, shown_pages=shown)
        draw_circuit(made, tiny_teacher, PAGES, paths)
        kept.append(json.loads((made.config.work / "circuit.json").read_text())["key"])
    assert kept[0] == kept[1]


def test_a_teacher_without_a_grid_of_patches_shows_none_unless_it_is_made_to(
    tiny_teacher: Teacher, paths: PathTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {"height": 33, "width": 48}
    monkeypatch.setattr(
        "circuitsearch.discovery.lens.page_maps._size", lambda teacher: tuple(size.values())
    )
    made = work(tmp_path / "out", {"source": "rendered"})
    draw_circuit(made, tiny_teacher, PAGES, paths)
    assert IMAGE not in (made.folder / "circuit.html").read_text()
    made = work(tmp_path / "out", {"source": "rendered"}, shown_pages=1)
    with pytest.raises(ConfigError, match="grid of square patches"):
        draw_circuit(made, tiny_teacher, PAGES, paths)
