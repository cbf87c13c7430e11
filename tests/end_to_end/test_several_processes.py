"""One student distilled by two processes, started as a user starts them."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from circuitsearch import Search
from tests.end_to_end.shell import ROOT, circuitsearch, environment
from tests.student_processes import free_port

LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0", "-m", "circuitsearch"),
]
PLAN = "M0 C2 S3 C3"
SEARCH = """\
name: small
output: {output}
teacher: {teacher}
data: {{source: rendered, train: 12, score: 2, select: 3, final: 2}}
budget: [{{quantity: parameters, limit: 50%}}]
elastic: {{steps: 0}}
distill: {{steps: 6, batch: 5, learning_rate: 3e-4, precision: bfloat16}}
"""


def _search(folder, teacher):
    folder.mkdir()
    path = folder / "search.yaml"
    path.write_text(SEARCH.format(output=folder / "out", teacher=teacher))
    return path


def _as_launched(*arguments):
    """Run a command in two processes without a launcher; return exit codes and standard errors."""
    port = free_port()
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "circuitsearch", *map(str, arguments)],
            env=environment() | told | {"RANK": str(index), "LOCAL_RANK": str(index)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=120) for process in started]
    assert [out for out, _ in said] == ["", ""]
    return [process.returncode for process in started], [error for _, error in said]


def test_two_processes_make_the_student_of_one(tmp_path, tiny_folder):
    path = _search(tmp_path / "two", tiny_folder)
    student = tmp_path / "two" / "student"
    words = ["distill", path, "--plan", PLAN, "--output", student, "--json"]
    done = subprocess.run(
        [*LAUNCH, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    begun = [line.split(" ", 1)[1] for line in done.stderr.splitlines() if "done in" not in line]
    assert "distilling M0 C2 S3 C3 (seed 0, 6 steps)" in begun
    assert len(begun) == len(set(begun)), begun  # only the main process talks
    told = json.loads(done.stdout)
    alone = Search(_search(tmp_path / "one", tiny_folder), quiet=True)
    made = alone.distill(PLAN, tmp_path / "one" / "student")
    # products in bfloat16 have 8 bits of mantissa
    assert told["loss"] == pytest.approx(made.loss, rel=1e-2)
    folders = (tmp_path / name / "out" / "work" / "students" for name in ("one", "two"))
    kept = [list(folder.iterdir()) for folder in folders]
    # the same training, by its name: the number of processes is no part of it
    assert [one.name for one in kept[0]] == [two.name for two in kept[1]]
    ((one,), (two,)) = kept
    one, two = load_file(one), load_file(two)
    assert one.keys() == two.keys()
    assert {weight.dtype for weight in two.values()} == {torch.float32}
    for name in one:
        if not name.endswith("k_proj.bias"):  # their gradient is rounding
            assert (one[name] - two[name]).norm() < 0.02 * one[name].norm(), name
    assert (student / "model.safetensors").exists()


def test_what_is_wrong_is_said_once(tmp_path, tiny_folder):
    path = _search(tmp_path / "bad", tiny_folder)
    words = ["distill", path, "--output", tmp_path / "student"]
    codes, errors = _as_launched(*words, "--plan", "M0 X9")
    assert codes == [2, 2]
    assert errors[0].startswith("error: Plan 'M0 X9': Unknown sub-layer: got 'X9'")
    assert errors[0].count("\n") == 1
    assert errors[1] == ""
    assert not (tmp_path / "student").exists()


def test_other_commands_are_refused(tmp_path):
    codes, errors = _as_launched("run", tmp_path / "search.yaml")
    assert codes == [2, 2]
    assert "circuitsearch run: started as 2 processes" in errors[0]
    assert errors[1] == ""


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "circuitsearch", "--version"],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        check=True,
    )
    assert done.stdout == circuitsearch("--version").stdout
