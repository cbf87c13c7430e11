"""The main job when it does not run through: killed, interrupted, started twice."""

import json
import signal
import subprocess
import time

import pytest
from filelock import FileLock

from tests.end_to_end.conftest import write_search
from tests.end_to_end.shell import COMMAND, ROOT, circuitsearch, environment


@pytest.mark.parametrize("delay", [4.0, 7.0])
def test_killed_and_run_again_it_ends_in_the_same_table(finished, tmp_path, tiny_folder, delay):
    _, reference, _ = finished
    path = write_search(tmp_path, tiny_folder)
    with subprocess.Popen(
        [*COMMAND, "run", str(path)], env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    circuitsearch("run", path)
    table, expected = (
        json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "out", reference)
    )
    for folder, one in ((tmp_path / "out", table), (reference, expected)):
        assert one["facts"].pop("command") == f"circuitsearch run {folder / 'search.yaml'}"
    assert table == expected


def interrupted(*arguments, at, times=1):
    """Run a command, press Ctrl-C when it says `at`, check how it ends; return what it said."""
    seen = ""
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=environment() | {"PYTHONUNBUFFERED": "1"},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # a background shell starts its children deaf to Ctrl-C; a terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for line in process.stderr:
            seen += line
            if at in line:
                break
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        seen += process.stderr.read()
    assert process.returncode == 130, seen
    assert "Traceback" not in seen
    return seen


def test_interrupted_once_it_stops_and_says_how_to_go_on(tmp_path, tiny_folder):
    path = write_search(tmp_path, tiny_folder)
    seen = interrupted("run", path, at="encoding pages")
    assert f"go on with: circuitsearch run {path}" in seen


@pytest.mark.parametrize("times", [1, 2])
def test_interrupted_with_a_plan_in_hand_it_hands_it_back(tmp_path, tiny_folder, times):
    """Once or, impatiently, twice: whoever comes next has the plan."""
    path = write_search(tmp_path, tiny_folder)
    longer = ["-o", "distill.steps=2000"]
    seen = interrupted("search", path, *longer, at="distilling", times=times)
    assert f"go on with: circuitsearch search {path} -o distill.steps=2000" in seen
    status = json.loads(circuitsearch("status", tmp_path / "out", "--json").stdout)
    assert (status["running"], status["measured"]) == (0, 0)
    if times == 1:
        assert status["interrupted"] == 0
    # what was not handed back is found out: its process has gone
    assert status["queued"] + status["interrupted"] >= 2  # scores' and elastic plan at least


def test_a_password_is_not_repeated(tmp_path, tiny_folder):
    path = write_search(tmp_path, tiny_folder)
    place = "search.storage=postgresql://someone:geh@eim@127.0.0.1:9/d"
    for given in (place, place.replace("storage", "storag"), place.replace("=", "")):
        done = subprocess.run(
            [*COMMAND, "search", str(path), "-o", given],
            env=environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (2, 4), done.stderr
        assert "eim" not in done.stderr + done.stdout
        assert "someone:***@127.0.0.1" in done.stderr
    written = (tmp_path / "out" / "search.yaml").read_text()
    assert "storage: postgresql://someone@127.0.0.1:9/d" in written


def test_a_second_process_is_kept_out(tmp_path, tiny_folder):
    path = write_search(tmp_path, tiny_folder)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        done = circuitsearch("run", path, code=4)
        assert "another process runs this search" in done.stderr
        circuitsearch("validate", path)
