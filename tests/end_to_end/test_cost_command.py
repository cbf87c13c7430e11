"""`circuitsearch cost`: Table 1 of Donut-MINT from shapes alone."""

import json

import pytest

from tests.end_to_end.shell import circuitsearch


def test_table_one_of_the_paper():
    arguments = ["cost", "--teacher", "donut-base", "--accounting", "paper", "--json"]
    data = json.loads(circuitsearch(*arguments).stdout)
    assert data["accounting"] == "paper"
    # the paper rounds to two decimals of G; 0.1 % is the bar for sub-layers, 0.5 % for the decoder
    for name, macs in {"S0": 8.58e9, "C3": 366.1e9, "M2": 16.69e9}.items():
        assert data["sublayers"][name]["macs"] == pytest.approx(macs, rel=1e-3)
    assert data["scopes"]["decoder"]["macs"] == pytest.approx(1.57e12, rel=5e-3)
    assert data["fixed"]["unembedding"]["macs"] == pytest.approx(117.2e9, rel=1e-3)
    assert data["scopes"]["decoder"]["parameters"] == 64 * 2**20
    assert isinstance(data["sublayers"]["S0"]["parameters"], int)


def test_the_papers_student():
    arguments = ["cost", "--teacher", "donut-base", "--plan", "M0 C2 S3 C3", "--json"]
    decoder = json.loads(circuitsearch(*arguments).stdout)["scopes"]["decoder"]
    assert decoder["parameters"] == 20 * 2**20
    assert decoder["macs"] == pytest.approx(757e9, rel=1e-3)


def test_heads_widths_and_both_accountings():
    plan = ["--plan", "S3[0-8] C3[4,7-11] M1:512"]
    costs = {}
    for accounting in ("paper", "cached"):
        arguments = ["cost", "--teacher", "donut-base", "--accounting", accounting, *plan, "--json"]
        costs[accounting] = json.loads(circuitsearch(*arguments).stdout)["scopes"]["decoder"]
    assert costs["paper"]["parameters"] == (9 + 6) * 2**18 + 2**20
    assert costs["cached"]["parameters"] > costs["paper"]["parameters"]  # biases and LayerNorms
    assert costs["cached"]["macs"] < costs["paper"]["macs"]


def test_faults_are_named():
    base = ["cost", "--teacher", "donut-base"]
    assert "paper, cached" in circuitsearch(*base, "--accounting", "papr", code=2).stderr
    assert "X9" in circuitsearch(*base, "--plan", "M0 X9", code=2).stderr
    assert "heads" in circuitsearch(*base, "--plan", "C3[16]", code=2).stderr


def test_help_needs_no_torch():
    """`--help` is answered from the command line's own modules."""
    assert "run" in circuitsearch("--help").stdout
    code = (
        "import sys, circuitsearch.cli.main; "
        "print([m for m in ('torch', 'transformers', 'optuna', 'matplotlib') if m in sys.modules])"
    )
    import subprocess
    import sys as system

    from tests.end_to_end.shell import ROOT, environment

    loaded = subprocess.run(
        [system.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        check=True,
    )
    assert loaded.stdout.strip() == "[]"
