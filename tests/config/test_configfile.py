"""Reading a search: faults are named with line, key and remedy, all of them together."""

from pathlib import Path

import pytest

from circuitsearch.config import SearchConfig, StudyConfig
from circuitsearch.configfile import check_config, dump_config, load_config
from circuitsearch.core.errors import ConfigError

GOOD = """\
name: trial
output: out
budget:
  - {quantity: parameters, limit: 31.25%}
"""

BAD = {
    "misspelt key": (
        GOOD + "teachr: shipped\n",
        r"line 5: teachr: unknown key; did you mean 'teacher'\?",
    ),
    "misspelt nested key": (
        GOOD + "search: {trainigs: 3}\n",
        r"line 5: search.trainigs: unknown key; did you mean 'trainings'\?",
    ),
    "key of another data source": (
        GOOD + "data: {source: rendered, path: x}\n",
        r"line 5: data.path: unknown key.*Allowed here: source, train, score",
    ),
    "no budget": ("name: a\noutput: o\n", r"budget: missing; add it"),
    "empty budget": ("name: a\noutput: o\nbudget: []\n", r"line 3: budget: .*at least 1"),
    "unknown quantity": (
        GOOD.replace("parameters", "parameter"),
        r"line 4: budget\[0\].quantity: .*'macs' or 'latency'.* did you mean 'parameters'\?",
    ),
    "number out of range": (
        GOOD + "distill: {steps: 0}\n",
        r"line 5: distill.steps: .*greater.*got 0",
    ),
    "yaml's no": (
        GOOD + "search: {sampler: no}\n",
        r"line 5: search.sampler: .*got False; YAML reads yes/no",
    ),
    "unknown data source": (
        GOOD + "data: {source: pdf}\n",
        r"line 5: data.source: got 'pdf', allowed are rendered, docvqa, huggingface",
    ),
    "shares above one": (
        GOOD + "data:\n  source: docvqa\n  path: x.json\n"
        "  shares: {train: 0.9, score: 0.1, select: 0.1, final: 0.1}\n",
        r"line 8: data.shares: the shares sum to 1.2, allowed at most 1",
    ),
    "share missing": (
        GOOD + "data: {source: docvqa, path: x.json, shares: {train: 0.9}}\n",
        r"data.shares: missing score, select, final",
    ),
    "elastic plans without elastic teacher": (
        GOOD + "elastic: {steps: 0}\nsearch: {warm_elastic: 3, sampler: elastic}\n",
        r"search.warm_elastic, search.sampler: asks for the elastic teacher but elastic.steps is 0",
    ),
    "promotion to what was done": (
        GOOD + "search: {promote: 2}\nfinal: {steps: 300}\n",
        r"search.promote asks to distil 2 plans .* but final.steps is 300; set it above",
    ),
    "promotion to less than was done": (
        GOOD + "search: {promote: 2}\nfinal: {steps: 100}\n",
        r"final.steps is 100; set it above distill.steps \(300\), or search.promote to 0",
    ),
    "promotion without longer training": (
        GOOD + "search: {promote: 2}\n",
        r"search.promote asks .* final.steps is that of distill.steps; set it above",
    ),
    "worths of two units": (
        GOOD + "scores: {metric: margin}\nspace: {replacements: [mean]}\n",
        r"scores.metric: got 'margin' with space.replacements, .*; set answer_loss",
    ),
    "settings that do not go together, all of them": (
        GOOD + "scores: {metric: margin}\nspace: {replacements: [mean]}\nsearch: {promote: 2}\n",
        r"scores.metric: got 'margin' .*\. search.promote asks to distil 2 plans",
    ),
    "misspelt loss": (
        GOOD + "distill: {losses: {forward_kld: 1}}\n",
        r"line 5: distill.losses.forward_kld: .*'forward_kl', .*got 'forward_kld'",
    ),
    "place that is none": (
        GOOD + "distill:\n  hidden_map: [[end, X3]]\n",
        r"line 6: distill.hidden_map\[0\]\[1\]: write 'end', or a sub-layer \(.*X3",
    ),
    "weight of a loss that is not there": (
        GOOD + "distill: {losses: {cross_entropy: 1}, kd_weight: 2}\n",
        r"line 5: distill: kd_weight weighs forward_kl, which is not among the losses",
    ),
    "repeated seed": (
        GOOD + "final: {seeds: [1, 1]}\n",
        r"line 5: final.seeds: a seed is listed twice",
    ),
    "name with a slash": (GOOD.replace("trial", "a/b"), r"line 1: name: .*pattern"),
    "key given twice": (GOOD + "name: other\n", r"line 5: name is given twice \(first in line 1\)"),
    "not YAML": (GOOD + "data: [\n", r"not valid YAML"),
    "a list": ("- a\n- b\n", r"expected `key: value` lines, got a list"),
    "nothing": ("", r"expected `key: value` lines, got nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_search_is_refused_with_what_to_change(tmp_path, case):
    text, message = BAD[case]
    path = tmp_path / "search.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)


def test_all_faults_come_together(tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(GOOD + "teachr: x\ndistill: {steps: -1}\nfinal: {seeds: []}\n")
    with pytest.raises(ConfigError, match="3 problems"):
        load_config(path)


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "quickstart.yaml").write_text(GOOD)
    with pytest.raises(
        ConfigError, match=r"quickstrt.yaml: no such file; nearest: .*quickstart.yaml"
    ):
        load_config(tmp_path / "quickstrt.yaml")


def test_the_resolved_file_reads_back_the_same(tmp_path):
    path, again = tmp_path / "search.yaml", tmp_path / "again.yaml"
    path.write_text(GOOD)
    config = load_config(path)
    again.write_text(dump_config(config))
    assert load_config(again) == config


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(GOOD)
    config = load_config(path, ["search.trainings=3", "final.seeds=[4, 5]", "teacher=other"])
    assert (config.search.trainings, config.final.seeds, config.teacher) == (3, [4, 5], "other")


def test_an_override_reaches_into_lists_and_is_named_when_wrong(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(GOOD + "distill: {learning_rate: 1e-4}\n")
    config = load_config(path, ["budget.0.limit=40%"])
    assert (config.budget[0].limit, config.distill.learning_rate) == ("40%", 1e-4)
    message = r"override 'budget.0.limit=140%': budget\[0\].limit: got '140%'.*at most 100%"
    with pytest.raises(ConfigError, match=message):
        load_config(path, ["budget.0.limit=140%"])
    path.write_text(GOOD + "distill: {learning_rate: -1}\n")
    with pytest.raises(ConfigError, match=r"line 5: distill.learning_rate: .*greater.*got -1"):
        load_config(path, ["seed=4"])


@pytest.mark.parametrize(
    "override",
    ["search.trainings", "=3", "name.sub=3", "budget.1.limit=3", "budget.x=3", "seed=2024-13-45"],
)
def test_bad_overrides_are_refused(tmp_path, override):
    path = tmp_path / "search.yaml"
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match="override"):
        load_config(path, [override])


@pytest.mark.parametrize("path", sorted(Path("searches").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_searches_are_valid_and_say_how_to_run_them(path):
    config = load_config(path)
    assert config.output == Path("results") / config.name
    command = "analyze" if path.stem == "donut-mint" else "run"
    assert path.read_text().startswith(f"# circuitsearch {command} {path}")


def test_without_an_elastic_teacher_nothing_asks_for_its_plans(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(GOOD + "elastic: {steps: 0}\n")
    config = load_config(path)
    assert (config.search.warm_elastic, config.search.warm_pairs, config.sampler) == (
        0,
        0,
        "circuit",
    )
    path.write_text(dump_config(config))  # and so it stays when it is read back
    assert load_config(path) == config


def test_methods_to_begin_with_are_refused_together_and_follow_the_space_as_the_sampler_does():
    faults = ["tailor", "random", "magnitude-unstructured", "taylor", "taylor"]
    with pytest.raises(ValueError, match="did you mean 'taylor'") as refused:
        StudyConfig(warm_baselines=faults)
    for word in ("'random'", "'magnitude-unstructured'", "taylor is listed twice"):
        assert word in str(refused.value)
    budget = [{"quantity": "parameters", "limit": "30%"}]
    for space, named, expected, sampler in (
        ({}, None, [], "elastic"),
        ({"attention": "counts"}, None, ["taylor", "finercut"], "circuit"),
        ({"widths": [8]}, None, ["taylor", "finercut"], "circuit"),
        ({"widths": [8]}, [], [], "circuit"),
        ({"replacements": ["mean"]}, ["puzzle"], ["puzzle"], "elastic"),
    ):
        given = {"name": "a", "output": "b", "budget": budget, "space": space}
        config = SearchConfig.model_validate({**given, "search": {"warm_baselines": named}})
        assert (config.warm_baselines, config.sampler) == (expected, sampler)


@pytest.mark.parametrize(
    ("plan", "whole"),
    [("S0 C3[0-1]", "S0 C3"), ("S0 M1:8 C3", "S0 M1 C3"), ("M0=mean C3", "M0 C3")],
)
def test_a_composition_names_whole_sub_layers(plan: str, whole: str) -> None:
    with pytest.raises(ConfigError, match=f"allowed are whole sub-layers: '{whole}'"):
        check_config({"name": "x", "space": {"within": plan}}, "x")
