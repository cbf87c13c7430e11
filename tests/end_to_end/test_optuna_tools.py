"""Optuna's own command line and its dashboard read a study, and show feasibility truthfully."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.end_to_end.shell import ROOT, circuitsearch, environment

BIN = Path(sys.executable).parent


def test_the_command_line_lists_study_and_trials(finished):
    _, output, _ = finished
    storage = f"sqlite:///{output / 'study.db'}"

    def optuna(*arguments):
        command = [BIN / "optuna", *arguments, "--storage", storage, "--format", "json"]
        done = subprocess.run(
            command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    (study,) = optuna("studies")
    assert (study["name"], study["n_trials"]) == ("small", 3)
    shown = [json.loads(circuitsearch("show", output, n, "--json").stdout) for n in (1, 2, 3)]
    trials = optuna("trials", "--study-name", "small")
    assert [one["state"] for one in trials] == ["COMPLETE"] * 3
    for trial, ours in zip(trials, shown, strict=True):
        assert trial["value"] == ours["measurement"]["quality"]
        assert trial["user_attrs"]["plan"] == ours["measurement"]["plan"]


def test_the_dashboard_shows_every_trial_as_feasible(finished):
    _, output, _ = finished
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [BIN / "optuna-dashboard", f"sqlite:///{output / 'study.db'}", "--port", str(port)]
    with subprocess.Popen(
        command, env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL
    ) as server:
        try:
            (summary,) = _json(f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
            study = _json(f"http://127.0.0.1:{port}/api/studies/{summary['study_id']}?after=0")
        finally:
            server.terminate()
    assert study["name"] == "small"
    assert len(study["trials"]) == 3
    for number, trial in enumerate(study["trials"], 1):
        ours = json.loads(circuitsearch("show", output, number, "--json").stdout)
        assert sorted(trial["constraints"]) == sorted(-left for left in ours["slack"].values())
        assert all(value <= 0 for value in trial["constraints"])


def _json(url, seconds=60):
    """Ask until the server is up."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urlopen(url) as answer:
                return json.load(answer)
        except URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
