"""The main job from the command line: run, run again, use the student, read the study."""

import json
import os
import re

import pytest
from PIL import Image

from circuitsearch.core.plan import Plan
from tests.end_to_end.conftest import SEARCH
from tests.end_to_end.shell import circuitsearch

FILES = [
    "search.yaml",
    "scores.json",
    "circuit.json",
    "circuit.graphml",
    "circuit.html",
    "study.db",
    "trials.json",
    "result.md",
    "result.json",
    "report.html",
    "report.json",
    "quality.png",
    "quality.svg",
    "page.png",
    "student/config.json",
    "student/model.safetensors",
    "student/README.md",
    "student/remote.py",
]


def test_it_writes_everything_and_prints_table_and_places(finished):
    _, output, done = finished
    for name in FILES:
        assert (output / name).stat().st_size > 0, name
    assert done.stdout == ""  # data only; words go to standard error
    for word in ("teacher", "T1", "T2", "best", str(output / "result.md")):
        assert word in done.stderr
    rows = json.loads((output / "result.json").read_text())["rows"]
    assert rows[0]["name"] == "teacher"
    assert sorted(row["name"] for row in rows[1:]) == ["T1", "T2", "best"]
    assert [row["rank"] for row in rows[1:]] == [1, 2, 3]  # best first
    for row in rows[1:]:
        assert row["parameters_share"] <= 0.5
        assert row["macs_share"] <= 0.7
        assert row["quality_low"] <= row["quality"] <= row["quality_high"]


def test_run_again_does_no_finished_work_again(finished):
    path, output, _ = finished
    table = (output / "result.json").read_bytes()
    again = circuitsearch("run", path)
    assert (output / "result.json").read_bytes() == table
    for stage in ("scoring components", "ranking all", "trial ", "elastic teacher: "):
        assert stage not in again.stderr
    resumed = circuitsearch("resume", output, "--json")
    assert json.loads(resumed.stdout) == json.loads(table)


def test_the_report_is_made_again_from_the_folder_alone(finished, tmp_path):
    _, output, _ = finished
    page = (output / "report.html").read_bytes()
    circuitsearch("report", output)
    assert (output / "report.html").read_bytes() == page
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("result.json", "report.json", "scores.json", "speed.json", "study.db"):
        (moved / name).write_bytes((output / name).read_bytes())
    done = circuitsearch("report", moved, "--html", tmp_path / "sub" / "r.html")
    assert str(tmp_path / "sub" / "r.html") in done.stderr
    # the same but for links: it does not lie beside the files
    there = (tmp_path / "sub" / "r.html").read_text()
    assert len(there) > 0.95 * len(page.decode())
    assert "data:image/png;base64," in there
    (moved / "study.db").unlink()
    assert "trials are left out" in circuitsearch("report", moved).stderr
    refused = circuitsearch("report", tmp_path, code=2)
    assert "circuitsearch run SEARCH.yaml" in refused.stderr


def test_the_student_answers_and_is_measured(finished, tmp_path):
    path, output, _ = finished
    Image.new("RGB", (128, 64), "white").save(tmp_path / "page.png")
    asked = [output / "student", tmp_path / "page.png", "What is the total?"]
    said = circuitsearch("answer", *asked)
    assert said.stdout.endswith("\n")
    data = json.loads(circuitsearch("answer", *asked, "--json").stdout)
    assert data["answer"] + "\n" == said.stdout
    uses = (output / "final_uses.jsonl").read_bytes()
    measured = json.loads(circuitsearch("evaluate", path, output / "student", "--json").stdout)
    assert (output / "final_uses.jsonl").read_bytes() == uses  # served from file
    result = json.loads((output / "result.json").read_text())
    plans = {row["plan"] for row in result["rows"] if row["name"] != "teacher"}
    counted = result["facts"]["evaluation"]["different plans measured on the final pages"]
    assert counted == len(plans)
    (best,) = [row for row in result["rows"] if row["name"] == "best"]
    for row in (row for row in result["rows"] if row is not best):
        assert row["difference_to"] == "best"
        assert row["difference"]["questions"] == row["examples"]
    told = circuitsearch("evaluate", path, output / "student", "--onnx").stderr
    assert f"{best['parameters']:,} parameters" in told
    assert re.search(r"latency +first token \d.* each further \d.* encoder \d", told)
    assert re.search(r"peak memory +decoder \d.* in all \d", told)
    assert re.search(r"ONNX latency +first token \d.* each further \d.* encoder \d", told)
    assert re.search(r"ONNX memory +process grows by \d.* on ONNX Runtime", told)
    assert measured["plan"] == best["plan"]
    assert measured["quality"] == pytest.approx(
        best["quality"], abs=1e-6
    )  # table rounds to 6 digits


def test_reading_commands_share_the_finished_work(finished):
    path, output, _ = finished
    scores = json.loads(circuitsearch("score", path, "--json").stdout)
    assert scores == json.loads((output / "scores.json").read_text())
    assert {c["component"] for c in scores["components"]} >= {"S0", "C3", "M2", "C1.H3"}
    table = json.loads(circuitsearch("paths", path, "--json").stdout)
    assert len(table["paths"]) == 2**5
    ranked = json.loads(circuitsearch("enumerate", path, "--top", "3", "--json").stdout)
    assert len(ranked["untrained"]) == len(ranked["elastic"]) == len(ranked["predicted"]) == 3
    assert ranked["predicted"] != ranked["elastic"]
    assert ranked["curve"][-1] == {"percent": 100, **ranked["predicted"][0]}
    assert ranked["curve"] == json.loads((output / "predicted.json").read_text())["ranked"]
    losses = [row["loss"] for row in ranked["untrained"]]
    assert losses == sorted(losses)
    page = (output / "circuit.html").read_text()
    assert page.count("data:image/png;base64,") == 1  # of the rendered pages
    assert json.loads((output / "result.json").read_text())["rows"][-1]["plan"] in page
    graph = json.loads(circuitsearch("graph", path, "--json").stdout)
    assert graph == json.loads((output / "circuit.json").read_text())
    assert (output / "circuit.html").read_text() == page
    trials = json.loads(circuitsearch("search", path, "--json").stdout)["trials"]
    assert len(trials) == 3
    facts = json.loads(circuitsearch("validate", path, "--json").stdout)
    assert facts["plans within budget"] == ranked["plans"]


def test_a_plan_of_ones_own_is_distilled(finished, tmp_path):
    path, _, _ = finished
    output = tmp_path / "mine"
    made = circuitsearch(
        "distill", path, "--plan", "C3 M0", "--output", output, "--steps", "2", "--json"
    )
    assert json.loads(made.stdout)["plan"] == "M0 C3"
    assert (output / "model.safetensors").exists()
    stock = ["--plan", "S1 C1 M1", "--output", tmp_path / "stock", "--stock", "--steps", "2"]
    circuitsearch("distill", path, *stock)
    config = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert config["decoder"]["model_type"] == "mbart"
    assert " --stock" in (tmp_path / "stock" / "README.md").read_text()  # how to make it again


def test_an_output_folder_of_another_search_is_refused(finished, tmp_path, tiny_folder):
    _, output, _ = finished
    path = tmp_path / "other.yaml"
    text = SEARCH.format(output=output, teacher=tiny_folder).replace("name: small", "name: other")
    path.write_text(text)
    done = circuitsearch("run", path, code=2)
    assert "holds the search 'small'" in done.stderr


def test_all_numbers_of_heads_inside_a_composition_are_ranked(finished, tmp_path):
    path, _, _ = finished
    inside = ["-o", "space.within=S0 C0 C3", "-o", "space.attention=counts"]
    elsewhere = ["-o", f"output={tmp_path / 'inside'}", "--top", "9999", "--json"]
    ranked = json.loads(circuitsearch("enumerate", path, *inside, *elsewhere).stdout)
    plans = [Plan.parse(row["plan"]) for row in ranked["predicted"]]
    assert len(plans) == ranked["plans"] == ranked["ranked"]["untrained"] > 8
    few = circuitsearch("enumerate", path, *inside, *elsewhere, "-o", "exhaustive.plans=8")
    sampled = json.loads(few.stdout)
    assert sampled["plans"] == ranked["plans"]
    assert {*sampled["ranked"]} == {"untrained", "elastic", "predicted"}
    assert sampled["predicted"] != sampled["elastic"]  # nearer to the teacher's weights
    whole = ["-o", "exhaustive.plans=8", "-o", "elastic.interpolation=1"]
    same = json.loads(circuitsearch("enumerate", path, *inside, *elsewhere, *whole).stdout)
    assert same["predicted"] == same["elastic"] == sampled["elastic"]
    assert {one.name for plan in plans for one in plan.sublayers} == {"S0", "C0", "C3"}
    assert any(keep.heads for plan in plans for _, keep in plan.kept)


def test_changed_settings_are_refused_with_a_diff_and_can_be_forked(finished, tmp_path):
    path, output, _ = finished
    done = circuitsearch("search", path, "-o", "distill.steps=7", code=2)
    assert "distill.steps" in done.stderr
    assert os.linesep in done.stderr
    assert "circuitsearch study fork" in done.stderr
    other = tmp_path / "other.yaml"
    text = path.read_text().replace("name: small", "name: other").replace(str(output), "OUT")
    other.write_text(text.replace("OUT", str(tmp_path / "other")))
    # a name says nothing where the new search has no database: said before anything is computed
    unknown = circuitsearch("study", "fork", other, "small", code=2)
    assert "give the output folder of the earlier search" in unknown.stderr
    forked = circuitsearch("study", "fork", other, output)
    assert "taken over: 3 results, 0 plans queued" in forked.stderr
    assert f"go on with: circuitsearch run {other}" in forked.stderr
    taken = json.loads(circuitsearch("status", tmp_path / "other", "--json").stdout)
    assert (taken["measured"], taken["queued"]) == (3, 0)
    database = tmp_path / "copy.db"
    circuitsearch("study", "backup", output, database)
    options = ["-o", f"search.storage={database}"]
    forked = circuitsearch("study", "fork", other, "small", *options)
    assert f"{other} -o search.storage={database}" in forked.stderr
    names = {
        one["name"] for one in json.loads(circuitsearch("study", "list", database, "--json").stdout)
    }
    assert names == {"small", "other"}
    ambiguous = circuitsearch("status", database, code=2)
    assert "choose one with --study NAME" in ambiguous.stderr


def test_a_study_is_read_and_worked_on_from_its_database(finished, tmp_path):
    path, output, _ = finished
    status = json.loads(circuitsearch("status", output, "--json").stdout)
    assert (status["measured"], status["trainings"], status["running"]) == (3, 3, 0)
    told = circuitsearch("status", output).stderr
    room = status["room"]["decoder parameters (paper)"]
    assert f"decoder parameters (paper): {room['limit']:,} limit, {room['left']:,} left" in told
    best = json.loads(circuitsearch("top", output, "1", "--json").stdout)[0]
    assert best["plan"] == status["best"]["plan"]
    assert json.loads(circuitsearch("status", path, "--json").stdout) == status  # the search file
    shown = json.loads(circuitsearch("show", output, best["trial"], "--json").stdout)
    assert shown["measurement"]["plan"] == best["plan"]
    assert set(shown["slack"]) == {"decoder parameters (paper)", "decoder macs (paper)"}
    assert min(shown["slack"].values()) >= 0
    assert (
        "trial: got 9, the study has trials 1 to"
        in circuitsearch("show", output, "9", code=2).stderr
    )
    database = tmp_path / "copy.db"
    circuitsearch("study", "backup", output, database)
    joining = ["worker", "--storage", database, "--output", tmp_path / "worker"]
    circuitsearch(*joining)  # the budget is spent: nothing to do
    assert json.loads(circuitsearch("status", database, "--json").stdout)["measured"] == 3
    at_worker = json.loads(circuitsearch("status", tmp_path / "worker", "--json").stdout)
    assert at_worker["measured"] == 3
    circuitsearch(*joining, "-o", "search.trainings=4")
    after = json.loads(circuitsearch("status", database, "--json").stdout)
    assert after["measured"] == 4
    # encoder outputs are the search's own: on one machine no worker computes them again
    assert not list((tmp_path / "worker").rglob("shard-*"))
    circuitsearch("stop", database)
    assert json.loads(circuitsearch("status", database, "--json").stdout)["stopping"]
    stopped = circuitsearch(*joining, "-o", "search.trainings=5")
    assert "stopped" in stopped.stderr
    other = ["-o", "seed=1"]
    refused = circuitsearch(*joining, *other, code=2)
    assert "this worker would measure something else" in refused.stderr
    missing = circuitsearch("status", tmp_path / "none.db", code=4)
    assert "there is no such file" in missing.stderr
