"""The folder that the documentation's examples run in: a finished example search, a student."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.docs.running import run_page


@pytest.fixture(scope="session")
def example_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The folder in which docs/example.md ran, its outputs checked on the way."""
    folder = tmp_path_factory.mktemp("docs")
    run_page(ROOT / "docs" / "example.md", folder, tiny_folder)
    return folder


@pytest.fixture(scope="session")
def reader_folder(
    example_folder: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What a reader has at hand: a search that was run, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("reader") / "here"
    shutil.copytree(example_folder, folder)
    shutil.copytree(folder / "results/example/student", folder / "STUDENT")
    shutil.copytree(folder / "results/example/student", folder / "results/quickstart/student")
    shutil.copyfile(folder / "results/example/page.png", folder / "page.png")
    shutil.copyfile(folder / "example.yaml", folder / "search.yaml")
    shutil.copytree(tiny_folder, folder / "TEACHER")
    return folder
