"""The final comparison with baselines beside the search, on the tiny teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from circuitsearch.config import SearchConfig
from circuitsearch.core.files import read_json
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import QuietReporter
from circuitsearch.show.rows import ResultRow
from circuitsearch.show.tables import table_notes
from circuitsearch.stages.training import Build
from circuitsearch.workspace import Workspace

BASELINES = ["mint", "magnitude", "magnitude-unstructured", "random"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Pipeline:
    """A search with baselines that ran through."""
    config = SearchConfig.model_validate(
        {
            "name": "compared",
            "output": tmp_path_factory.mktemp("compared") / "out",
            "teacher": str(tiny_folder),
            "data": {"source": "rendered", "train": 8, "score": 4, "select": 3, "final": 3},
            "budget": [{"quantity": "parameters", "limit": "31.25%"}],
            "elastic": {"steps": 0},
            "distill": {"steps": 2, "batch": 4},
            "exhaustive": {"top": 1, "short": 2},
            "baselines": BASELINES,
            "search": {"trainings": 2, "warm_edges": 0},
            "final": {"seeds": [0, 1]},
        }
    )
    pipeline = Pipeline(Workspace(config, QuietReporter()))
    assert pipeline.rows
    return pipeline


def row(made: Pipeline, name: str) -> ResultRow:
    return next(one for one in made.rows if one.name == name)


def test_every_method_has_a_row_with_all_seeds(made: Pipeline) -> None:
    names = [one.name for one in made.rows]
    methods = ["mint18", "magnitude", "magnitude-unstructured", "random"]
    assert names == ["teacher", "T1", "D1", *methods, "best"]
    assert all(one.seeds == (0, 1) for one in made.rows[1:])
    assert {row(made, name).source for name in methods} == {"baseline"}
    for name in ("mint18", "magnitude", "random", "best"):
        assert row(made, name).parameters_share <= 0.3125


def test_short_distillation_says_what_it_took(made: Pipeline) -> None:
    first, distilled = row(made, "T1").search_cost, row(made, "D1").search_cost
    assert first is not None
    assert distilled is not None
    assert (first.trainings, distilled.trainings) == ((), ((2, 2),))


def test_groups_tell_all_their_plans(made: Pipeline) -> None:
    (note,) = row(made, "mint18").notes
    assert note.startswith("6 plans, shown is the first by the paper's rule")
    assert row(made, "mint18").plan == "C2 S3 C3"
    drawn = [one for name, one in made.baselines if name == "random"]
    (spread,) = [note for note in row(made, "random").notes if "the median" in note]
    assert spread.startswith(f"{len(drawn)} plans")
    assert all(str(one.plan) in spread for one in drawn)


def test_single_weights_say_that_they_are_zeros(made: Pipeline) -> None:
    unstructured = row(made, "magnitude-unstructured")
    assert (unstructured.parameters_share, unstructured.macs_share) == (1.0, 1.0)
    told = " ".join(table_notes(made.rows))
    assert "zeros" in told
    assert "MACs are 100 %" in told
    (proposal,) = [one for name, one in made.baselines if name == "magnitude-unstructured"]
    assert proposal.masks is not None
    build = Build(proposal.neurons, proposal.masks)
    student = made.trainer.student(proposal.plan, 0, 2, build)
    weights = dict(student.decoder.named_parameters())
    for name, kept in proposal.masks.kept.items():
        assert torch.equal(weights[name][~kept], torch.zeros(int((~kept).sum())))


def test_rows_are_read_back_with_their_notes(made: Pipeline, tmp_path: Path) -> None:
    for one in made.rows:
        assert ResultRow.from_json(one.to_json()) == one
    made.run()
    table = read_json(made.work.folder / "result.json")["rows"]
    assert [one["notes"] for one in table] == [list(one.notes) for one in made.rows]
