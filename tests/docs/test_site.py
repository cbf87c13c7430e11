"""The site builds strictly, without torch, and every page is in its navigation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from tests.docs.blocks import PAGES, ROOT


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    # not --quiet: that hides warnings from --strict, too
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "api" / "index.html").read_text()
    for name in ("Search", "open_study", "answer_question"):
        assert f".{name}" in api
    # everything is served from the site itself
    assert "fonts.googleapis" not in api
    assert "cdnjs" not in api


def test_every_page_is_in_the_navigation() -> None:
    # read as plain text: mkdocs' own tags are of no interest here
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = [one for entry in nav for one in _pages(entry)]
    there = [str(p.relative_to(ROOT / "docs")) for p in PAGES if p.name != "README.md"]
    assert sorted(named) == sorted(there)


def _pages(entry: dict[str, object]) -> list[str]:
    found = []
    for value in entry.values():
        if isinstance(value, list):
            found += [one for inner in value for one in _pages(inner)]
        else:
            found.append(str(value))
    return found
