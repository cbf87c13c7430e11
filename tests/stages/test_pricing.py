"""Pricing a search: costs, disk and trainings are those of the run; the pace is really measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuitsearch.cli.main import app
from circuitsearch.config import SearchConfig
from circuitsearch.core.cost import cost
from circuitsearch.core.errors import ConfigError
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import QuietReporter
from circuitsearch.stages import compute_features
from circuitsearch.stages.pricing import largest, measure_time, price, trainings
from circuitsearch.students.features import prepare_features
from circuitsearch.students.features.prepare import feature_bytes
from circuitsearch.students.training.distill import DistillRecipe
from circuitsearch.students.training.pace import RandomFeatures, step_seconds
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace
from tests.student_fixtures import noise_pages

SEARCH = """\
name: priced
output: {output}
teacher: {teacher}
data: {{source: rendered, train: 6, score: 2, select: 3, final: 4}}
budget:
  - {{quantity: parameters, limit: 50%}}
  - {{quantity: macs, limit: 70%}}
elastic: {{steps: 7}}
distill: {{steps: 5, batch: 8}}
exhaustive: {{top: 2, short: 4}}
search: {{trainings: 3, promote: 1}}
final: {{seeds: [0, 1], steps: 9}}
baselines: [wanda]
"""


@pytest.fixture
def search(tmp_path: Path, tiny_folder: Path) -> Path:
    path = tmp_path / "priced.yaml"
    path.write_text(SEARCH.format(output=tmp_path / "out", teacher=tiny_folder))
    return path


def _pipeline(path: Path) -> Pipeline:
    import yaml

    config = SearchConfig.model_validate(yaml.safe_load(path.read_text()))
    return Pipeline(Workspace(config, QuietReporter()))


def test_the_largest_student_uses_most_of_the_first_limit(search: Path) -> None:
    line = _pipeline(search)
    shape, space = line.teacher.shape, line.space

    def used(plan: object) -> int:
        return cost(plan, shape, "paper").scopes["decoder"].parameters  # type: ignore[arg-type]

    assert space.feasible(largest(space))
    assert used(largest(space)) == max(map(used, space.enumerate()))


def test_disk_and_trainings_are_those_of_the_run(search: Path, tmp_path: Path) -> None:
    line = _pipeline(search)
    told = price(line.work, line.teacher, line.pages, line.space)
    splits = [line.pages[name] for name in ("train", "select", "final")]
    assert told["encoder passes"] == 13
    # sizes without file headers: JSON of at most some hundred bytes per shard
    for split in splits:
        folder = tmp_path / str(id(split))
        prepare_features(line.teacher, split, folder)
        written = sum(one.stat().st_size for one in folder.rglob("*.safetensors"))
        assert 0 <= written - feature_bytes(line.teacher, split) < 1000
    assert told["features on disk, bytes"] == sum(feature_bytes(line.teacher, s) for s in splits)
    # the bound is on all of them together, and kept before any page is encoded
    allowed = (told["features on disk, bytes"] - 1) / 1e9
    config = line.work.config.model_copy(update={"cache_gigabytes": allowed})
    less = Workspace(config, QuietReporter())
    with pytest.raises(ConfigError, match="Features of all pages would take"):
        compute_features(less, line.teacher, line.pages)
    assert not config.cached.exists() or not list(config.cached.rglob("shard-*"))
    assert trainings(line.work) == {
        "elastic teacher": {"trainings": 1, "steps": 7},
        "search": {"trainings": 3, "steps": 5},
        "promotion": {"trainings": 1, "steps": 9},
        "exhaustive baseline": {"trainings": 4, "steps": 5},
        # best, T1, T2, D1, D2, wanda, with two seeds each
        "final comparison": {"trainings": 12, "steps": 9},
    }


def test_of_several_plans_of_one_method_all_are_trained_once(search: Path) -> None:
    search.write_text(search.read_text().replace("[wanda]", "[wanda, random, mint]"))
    # 12 as above, a row with two seeds for each, and the others of 20 draws and of 6 siblings
    found = trainings(_pipeline(search).work)["final comparison"]
    assert found["trainings"] == 12 + 2 + 2 + 19 + 5


def test_random_features_have_the_shapes_of_real_ones(
    tiny_teacher: Teacher, tmp_path: Path
) -> None:
    pages = noise_pages(5)
    real = prepare_features(tiny_teacher, pages, tmp_path, temperatures=(1.0, 2.0))
    made = RandomFeatures(tiny_teacher, pages, (1.0, 2.0))
    for some in ([0, 1, 2], [4, 1, 7, 3]):
        one, other = real.read(some), made.read(some)
        assert one.states.shape == other.states.shape
        assert one.rows.tolist() == other.rows.tolist()
        assert one.batch.ids.tolist() == other.batch.ids.tolist()
        assert one.teacher.logits.shape == other.teacher.logits.shape


def test_the_pace_counts_its_steps(tiny_teacher: Teacher) -> None:
    from circuitsearch.core.plan import Plan
    from circuitsearch.students.student import build_student
    from circuitsearch.teacher.decoders import residual_decoder

    features = RandomFeatures(tiny_teacher, noise_pages(4), (1.0, 2.0))
    view = residual_decoder(build_student(tiny_teacher, Plan.parse("C1 M1")).decoder)
    recipe = DistillRecipe(steps=1, batch=4, learning_rate=1e-3, warmup=0.0, temperature=2.0)
    pace = step_seconds(view, features, recipe, teacher=tiny_teacher.decoder, steps=3)
    assert pace.n == 3
    assert pace.seconds > 0
    hurried = step_seconds(view, features, replace(recipe, batch=2), steps=9, limit=0.0)
    assert hurried.n == 1  # one step is measured whatever the limit


def test_the_estimate_is_the_sum_of_its_parts(search: Path, tmp_path: Path) -> None:
    line = _pipeline(search)
    made = measure_time(line.work, line.teacher, line.pages, line.space)
    parts = made["by part"]
    step = made["measured"]["step of the largest student"]
    assert parts["search"] == pytest.approx(3 * 5 * step["seconds"], abs=0.06)
    page = made["measured"]["seconds per page of the circuit"]
    assert parts["circuit graph"] == pytest.approx(2 * page, abs=0.06)  # 2 pages to score on
    assert made["measured"]["seconds per page scored"] > 0
    assert made["seconds"] == pytest.approx(sum(parts.values()), abs=0.06 * len(parts))
    assert made["measured"]["pages"] == 3
    assert "threads" in made["machine"]
    assert not (tmp_path / "out").exists()  # nothing is run


def test_validate_tells_it_and_can_leave_the_measurement_out(search: Path) -> None:
    done = CliRunner().invoke(app, ["validate", str(search), "--no-measure", "--json", "--quiet"])
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert "time" not in facts
    assert set(facts["costs"]) == {"teacher", "smallest student", "largest student"}
    shown = CliRunner().invoke(app, ["validate", str(search)])
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout == ""
    for words in ("time, about", "plans within budget", "features on disk", "n = 5", "not counted"):
        assert words in shown.stderr
    # a teacher of random weights answers nothing right, and says so before a search is begun
    assert "with ANLS 0.000: students learn from it" in shown.stderr
