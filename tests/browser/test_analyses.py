"""The page of the analyses in a browser: accessible in both themes, narrow and wide, and silent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from circuitsearch.show.analysis_charts import charts_of
from circuitsearch.show.analysis_page import analyses_html
from tests.show.findings import FACTS, findings
from tests.show.test_report_page import EVIL

RULES = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("analyses")
    given = {"harmless": findings(), "hostile": findings(EVIL)}
    facts = {"harmless": FACTS, "hostile": {EVIL: EVIL, "title": EVIL}}
    told = {name: analyses_html(one, facts[name], charts_of(one)) for name, one in given.items()}
    paths = {name: folder / f"{name}.html" for name in told}
    for name, path in paths.items():
        path.write_text(told[name], "utf-8")
    return paths


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
    assert all(address.startswith("file:") for address in asked)


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [
        *(("harmless", "light", 1300), ("harmless", "dark", 360)),
        *(("hostile", "dark", 1300), ("hostile", "light", 360)),
    ],
)
def test_axe_finds_nothing(
    quiet: Chrome, axe: str, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    quiet.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    quiet.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    quiet.get(pages[name].as_uri())
    quiet.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    quiet.execute_script(axe)
    told: dict[str, Any] = quiet.execute_async_script(
        "const done = arguments[0];"
        f"axe.run(document, {{runOnly: {RULES}}}).then(done, e => done({{error: String(e)}}));"
    )
    assert told["passes"], told  # it did look
    assert [(one["id"], one["nodes"][0]["target"]) for one in told["violations"]] == []
    # tables scroll in themselves; the page does not scroll sideways
    assert quiet.execute_script("return document.documentElement.scrollWidth") <= width


def test_hostile_text_ran_nothing(quiet: Chrome, pages: dict[str, Path]) -> None:
    quiet.get(pages["hostile"].as_uri())
    assert quiet.execute_script("return document.scripts.length") == 0
    handlers = "return document.querySelectorAll('[onerror],[onclick],[onmouseover]').length"
    assert quiet.execute_script(handlers) == 0
    assert "<script>alert(1)</script>" in quiet.find_element(By.TAG_NAME, "h1").text


def test_a_claim_leads_to_its_section_and_long_tables_open(
    quiet: Chrome, pages: dict[str, Path]
) -> None:
    quiet.get(pages["harmless"].as_uri())
    claims = quiet.find_element(By.ID, "claims")
    claims.find_element(By.LINK_TEXT, "Claim that is partly").click()
    assert quiet.current_url.endswith("#analysis-whole")
    section = quiet.find_element(By.ID, "analysis-whole")
    assert not section.find_element(By.XPATH, ".//td[text()='35']").is_displayed()
    section.find_element(By.XPATH, ".//summary[contains(., 'Every part')]").click()
    assert section.find_element(By.XPATH, ".//td[text()='35']").is_displayed()
