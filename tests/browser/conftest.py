"""A headless Chromium that opens circuit pages from disk and notes what they complain about.

These tests fail, and are never skipped, where the browser is missing: `make browser` installs it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from circuitsearch.show.viewer import write_circuit_html

Open = Callable[..., Chrome]

# The page and what it makes itself (a table to save); anything else would be a request.
_OWN = ("file:", "blob:", "data:")
_INSTALL = "run `make browser`, or install the Debian packages chromium and chromium-driver"


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed: {_INSTALL}", pytrace=False)
    return path


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def browser(downloads: Path) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = _program("chromium")
    for flag in (
        *("--headless=new", "--window-size=1500,1300", "--force-device-scale-factor=1"),
        # Containers run tests as root and give little shared memory.
        *("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"),
    ):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(_program("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def open_page(browser: Chrome, tmp_path: Path) -> Iterator[Open]:
    """Write a page and open it from disk; afterwards: nothing complained, nothing was fetched."""

    def open_(circuit: dict[str, Any], *, hash_: str = "", **options: Any) -> Chrome:
        path = write_circuit_html(circuit, tmp_path / "circuit.html", **options)
        browser.get(path.as_uri() + hash_)
        return browser

    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)  # reading empties it
    yield open_
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = [
        message["params"]["request"]["url"]
        for message in sent
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert any(address.startswith("file:") for address in addresses)  # the log does record
    assert [address for address in addresses if not address.startswith(_OWN)] == []
    browser.get("about:blank")


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which `make browser` puts beside the Python environment."""
    folder = Path(os.environ.get("CIRCUITSEARCH_BROWSER", Path(sys.prefix) / "browser"))
    path = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not path.is_file():
        pytest.fail(
            f"axe-core is not at {path}: run `make browser`, or `.ci/browser FOLDER` and set "
            "CIRCUITSEARCH_BROWSER=FOLDER",
            pytrace=False,
        )
    return path.read_text("utf-8")
