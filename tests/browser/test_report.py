"""The report in a browser: accessible in both themes, narrow as well as wide, and silent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome

from circuitsearch.show.report_page import report_html
from tests.show.report_fixtures import found
from tests.show.test_report_page import EVIL, material

RULES = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report_html(material(EVIL, found=found(heads=True)), links=True), "utf-8")
    return path


@pytest.fixture
def quiet(browser: Chrome) -> Iterator[Chrome]:
    """The browser; afterwards it has complained about nothing and fetched nothing but the page."""
    for log in ("browser", "performance"):
        browser.get_log(log)  # reading empties it
    yield browser
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert all(address.startswith(("file:", "data:")) for address in asked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 360])
def test_axe_finds_nothing(quiet: Chrome, axe: str, page: Path, scheme: str, width: int) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    quiet.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    quiet.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    quiet.get(page.as_uri())
    quiet.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    quiet.execute_script(axe)
    told: dict[str, Any] = quiet.execute_async_script(
        "const done = arguments[0];"
        f"axe.run(document, {{runOnly: {RULES}}}).then(done, e => done({{error: String(e)}}));"
    )
    assert told["passes"], told  # it did look
    assert [(one["id"], one["nodes"][0]["target"]) for one in told["violations"]] == []
    # tables and settings scroll in themselves; the page does not scroll sideways
    assert quiet.execute_script("return document.documentElement.scrollWidth") <= width


def test_hostile_text_ran_nothing(quiet: Chrome, page: Path) -> None:
    quiet.get(page.as_uri())
    assert quiet.execute_script("return document.scripts.length") == 0
    assert (
        quiet.execute_script("return document.querySelectorAll('[onerror],[onclick]').length") == 0
    )
