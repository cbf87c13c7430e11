"""What a user can get wrong: exit code, message, remedy, no traceback."""

import json

import pytest

from tests.config.test_configfile import BAD
from tests.end_to_end.shell import circuitsearch

GOOD = """\
name: trial
output: {output}
teacher: {teacher}
data: {data}
budget:
  - {{quantity: parameters, limit: {limit}}}
"""


@pytest.mark.parametrize("case", list(BAD)[:10])
def test_ten_bad_searches(tmp_path, case):
    path = tmp_path / "search.yaml"
    path.write_text(BAD[case][0])
    done = circuitsearch("validate", path, code=2)
    assert str(path) in done.stderr.replace("\n", "")


def _write(tmp_path, teacher, data="{source: rendered}", limit="50%"):
    path = tmp_path / "search.yaml"
    output = tmp_path / "out"
    path.write_text(GOOD.format(output=output, teacher=teacher, data=data, limit=limit))
    return path


def _record(**changes):
    row = {
        "questionId": 1,
        "question": "What is the total?",
        "image": "page.png",
        "docId": 1,
        "answers": ["4"],
        "data_split": "train",
    }
    return row | changes


BAD_DATA = {
    "not JSON": ("{", ["data.json", "not valid JSON"]),
    "no data": (json.dumps({"dataset_name": "x"}), ["data.json", "data"]),
    "missing image": (json.dumps({"data": [_record()]}), ["row 0", "page.png"]),
    "no answers": (json.dumps({"data": [_record(answers=[])]}), ["row 0", "answers"]),
    "path outside": (
        json.dumps({"data": [_record(image="../../x.png")]}),
        ["row 0", "../../x.png"],
    ),
    "wrong type": (json.dumps({"data": [_record(question=7)]}), ["row 0", "question"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_sets(tmp_path, tiny_folder, case):
    text, words = BAD_DATA[case]
    (tmp_path / "data.json").write_text(text)
    data = f"{{source: docvqa, path: {tmp_path / 'data.json'}}}"
    done = circuitsearch("validate", _write(tmp_path, tiny_folder, data), code=2)
    for word in words:
        assert word in done.stderr, done.stderr


def test_an_impossible_budget_is_refused_before_anything_runs(tmp_path, tiny_folder):
    done = circuitsearch("run", _write(tmp_path, tiny_folder, limit="0.5%"), code=3)
    assert "smallest" in done.stderr
    assert not (tmp_path / "out" / "work").exists()


def test_a_storage_that_cannot_be_opened(tmp_path, tiny_folder):
    path = _write(
        tmp_path, tiny_folder, "{source: rendered, train: 4, score: 2, select: 2, final: 2}"
    )
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"this is no database, however long it may be" * 100)
    options = ["elastic.steps=0", "search.warm_elastic=0", f"search.storage=sqlite:///{broken}"]
    arguments = [word for option in options for word in ("-o", option)]
    done = circuitsearch("search", path, *arguments, code=4)
    assert "broken.db" in done.stderr


def test_an_output_that_is_no_folder(tmp_path, tiny_folder):
    path = _write(tmp_path, tiny_folder)
    (tmp_path / "out").write_text("a file")
    done = circuitsearch("run", path, code=4)
    assert "choose another" in done.stderr


def test_unknown_teachers_images_and_folders(tmp_path, tiny_folder):
    done = circuitsearch("validate", _write(tmp_path, tmp_path / "nowhere"), code=2)
    assert "nowhere" in done.stderr
    done = circuitsearch("answer", tiny_folder, tmp_path / "none.png", "What?", code=2)
    assert "none.png: no such file" in done.stderr
    (tmp_path / "text.png").write_text("no image")
    done = circuitsearch("answer", tiny_folder, tmp_path / "text.png", "What?", code=2)
    assert "not an image" in done.stderr
    done = circuitsearch("resume", tmp_path / "empty", code=2)
    assert "no search.yaml there" in done.stderr


def test_what_is_misspelt_late_is_refused_early(tmp_path, tiny_folder):
    """What a stage would stumble over after an hour is refused while the file is read."""
    path = _write(tmp_path, tiny_folder, limit="50percent")
    done = circuitsearch("validate", path, code=2)
    assert "line 6: budget[0].limit: got '50percent'" in done.stderr
    path = _write(tmp_path, tiny_folder)
    for override, words in {
        "search.sampler=elastc": "did you mean 'elastic'",
        "space.widths=[64, 32]": "ascending",
        "distill.learning_rate=.inf": "finite",
        "search.trainings=yes": "true/false",
        "budget.1.limit=3": "budget is a list of 1",
    }.items():
        done = circuitsearch("validate", path, "-o", override, code=2)
        assert override in done.stderr
        assert words in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_nothing_is_drawn_from_nothing(tmp_path, tiny_folder):
    path = _write(tmp_path, tiny_folder)
    before = path.read_bytes()
    assert "exists already" in circuitsearch("init", path, code=2).stderr
    assert path.read_bytes() == before
    done = circuitsearch("graph", "show", path, code=2)
    assert f"circuitsearch graph {path}" in done.stderr


def test_usage_errors_exit_with_two():
    circuitsearch("run", code=2)
    circuitsearch("nonsense", code=2)
