"""What the report stage records: commands, settings without passwords, pages only where allowed."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from circuitsearch.configfile import load_config
from circuitsearch.stages.recording import record_of
from circuitsearch.teacher.documents.records import Page, Question
from tests.show.report_fixtures import answers, rows

RIGHT = [True, True, False, False, True, False, True, False]
RENDERED = "{source: rendered, train: 8, score: 2, select: 2, final: 4}"
OWN = "{source: docvqa, path: val.json}"


class Drawn:
    """A page image of noise, which compresses worst."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def image(self) -> Image.Image:
        noise = torch.randint(0, 256, (self.size[1], self.size[0], 3), dtype=torch.uint8)
        return Image.fromarray(noise.numpy())

    def fingerprint(self) -> str:
        return "x"


def recorded(folder: Path, data: str = RENDERED, more: str = "", **image: Any) -> Any:
    path = folder / "search.yaml"
    path.write_text(
        f"name: made-up\noutput: '{folder / 'my out'}'\ndata: {data}\n"
        f"budget: [{{quantity: parameters, limit: 50%}}]\n{more}"
    )
    config = load_config(path)
    pages = [
        Page(
            f"p{n}",
            f"d{n}",
            tuple(Question(f"q{m}", f"Which {m}?", ("gold",)) for m in range(n, len(RIGHT), 4)),
            Drawn(image.get("size", (128, 64))),
        )
        for n in range(4)
    ]
    trainer: Any = SimpleNamespace(
        teacher=SimpleNamespace(device=torch.device("cpu")),
        answered_teacher=lambda: (None, answers([True] * len(RIGHT))),
        answered=lambda *_, **__: (None, answers(RIGHT)),
    )
    work: Any = SimpleNamespace(config=config)
    return record_of(work, trainer, rows(), pages, "best")


def test_questions_come_with_their_texts_and_pages(tmp_path: Path) -> None:
    made = recorded(tmp_path)
    assert len(made.asked) == 6
    assert made.outcomes == {"both": 4, "teacher alone": 4, "student alone": 0, "neither": 0}
    for one in made.asked:
        number = int(one.question.removeprefix("Which ").removesuffix("?"))
        assert one.page == f"p{number % 4}"
        assert one.student.exact == RIGHT[number]
        assert Image.open(io.BytesIO(one.image)).size == (128, 64)
    assert made.student == "best, seed 0"


@pytest.mark.parametrize(("more", "shown"), [("", False), ("report: {pages: true}\n", True)])
def test_pages_of_a_user_are_embedded_only_where_asked_for(
    tmp_path: Path, more: str, shown: bool
) -> None:
    made = recorded(tmp_path, OWN, more)
    assert all((one.image is not None) == shown for one in made.asked)


def test_six_large_pages_leave_room_below_two_megabytes(tmp_path: Path) -> None:
    made = recorded(tmp_path, size=(2480, 3508))
    total = sum(len(one.image) for one in made.asked)
    assert total * 4 / 3 < 1.9e6  # in base64


def test_the_command_runs_as_it_stands_and_no_password_is_told(tmp_path: Path) -> None:
    url = "postgresql://me:secret@host/db"
    made = recorded(tmp_path, more=f"search: {{storage: '{url}'}}\n")
    assert "secret" not in repr(made)
    words = shlex.split(made.command)
    assert words[1:4] == ["circuitsearch", "run", str(tmp_path / "my out" / "search.yaml")]
    overrides = [words[n + 1] for n, word in enumerate(words) if word == "-o"]
    (tmp_path / "my out").mkdir()
    (tmp_path / "my out" / "search.yaml").write_text((tmp_path / "search.yaml").read_text())
    again = load_config(Path(words[3]), overrides)
    assert again.output == tmp_path / "my out-again"
    assert again.search.storage is None


def test_the_environment_names_versions_and_hardware(tmp_path: Path) -> None:
    told = recorded(tmp_path).environment
    assert told["torch"].startswith("2.")
    assert {"circuitsearch", "Python", "optuna", "device", "cores", "system"} <= set(told)
