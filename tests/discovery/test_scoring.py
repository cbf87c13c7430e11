from __future__ import annotations

import numpy as np
import pytest

from circuitsearch.core.errors import ConfigError
from circuitsearch.core.scores import Scores
from circuitsearch.discovery.attribution.engine import component_scores
from circuitsearch.discovery.calibration import component_calibration
from circuitsearch.discovery.patching.components import effects, sample_metric
from circuitsearch.discovery.sample import Sample
from circuitsearch.discovery.scoring import score_components
from circuitsearch.teacher.loading import Teacher


def test_the_record_holds_means_over_examples(tiny_teacher: Teacher, sample: Sample) -> None:
    record = score_components(tiny_teacher, sample, ablation="mean")
    scores = component_scores(tiny_teacher.decoder, sample, "mean").values
    measured = effects(tiny_teacher.decoder, sample, ablation="mean")
    assert [c.component for c in record.components] == list(scores)
    for entry in record.components:
        assert entry.score == scores[entry.component].mean()
        assert entry.score_sd == scores[entry.component].std()
        assert entry.effect == measured[entry.component].mean()
        assert entry.effect_sd == measured[entry.component].std()
        assert entry.examples == 9
    assert record.teacher == tiny_teacher.fingerprint
    assert (record.metric, record.ablation, record.examples) == ("answer_loss", "mean", 9)
    assert record.base_metric == sample_metric(tiny_teacher.decoder, sample).mean()
    # nine examples; means 1; sub-layers: clean run and two points behind each of twelve (66
    # twelfths), forward and backward; heads: clean run and four turns; effects: clean 1 and 44
    assert record.passes == 9 * (1 + 1 + 2 * 2 * 66 / 12 + 1 + 2 * 4 + 1 + 44)
    assert record.method == "activations-2 and turns"
    assert Scores.from_json(record.to_json()) == record


def test_scores_alone_are_cheap(tiny_teacher: Teacher, sample: Sample) -> None:
    record = score_components(tiny_teacher, sample, exact=False, method="eap")
    assert record.passes == 9 * 2
    assert record.method == "eap"
    assert record.calibration == {}
    assert all(c.effect is None and c.score is not None for c in record.components)


@pytest.mark.parametrize("method", ["eap", "activations-2"])
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_scores_rank_the_tiny_teachers_components(
    tiny_teacher: Teacher, sample: Sample, ablation: str, method: str
) -> None:
    found = score_components(tiny_teacher, sample, ablation=ablation, method=method).calibration
    # a random teacher is nearly linear in its parts; a wrong sign or a wrong pairing gives <= 0
    assert found["sublayers.spearman"] > 0.8
    assert found["heads.spearman"] > 0.8
    assert 0.5 < found["heads.slope"] < 2


def test_calibration_of_known_numbers() -> None:
    effect = {f"S{i}": np.array([float(i), float(i) + 2]) for i in range(4)}
    score = {name: values / 2 + 1 for name, values in effect.items()}
    found = component_calibration(score, effect)
    assert found == pytest.approx(
        {"sublayers.spearman": 1, "sublayers.pearson": 1, "sublayers.slope": 0.5}
    )
    turned = {name: -values for name, values in score.items()}
    assert component_calibration(turned, effect)["sublayers.spearman"] == pytest.approx(-1)


def test_undefined_agreement_is_left_out() -> None:
    flat = {f"S{i}": np.ones(2) for i in range(4)}
    rising = {f"S{i}": np.full(2, i) for i in range(4)}
    assert component_calibration(flat, rising) == {}
    assert component_calibration(rising, flat) == {}
    assert component_calibration({"S0": np.ones(1)}, {"S0": np.ones(1)}) == {}


def test_unknown_ablation(tiny_teacher: Teacher, sample: Sample) -> None:
    with pytest.raises(ConfigError, match="allowed are zero, mean, position_mean, resample"):
        score_components(tiny_teacher, sample, ablation="noise")
