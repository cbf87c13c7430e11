from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.show.circuits import circuit

Open = Callable[..., Chrome]
PLANS = {"MINT31": "M0 C2 S3 C3", "heads": "S3[0-2] C3[1,3] M0:512"}
VIEWS = {
    "first": "",
    "component": "#select=C3&edges=40",
    "plan": "#plan=MINT31&select=S0",
    "two-plans": "#plan=MINT31&against=heads",
    "difference": "#graph=3&select=C2.H1",
    "tables": "#view=table&find=C3",
}


@pytest.fixture
def prefer(browser: Chrome) -> Iterator[Callable[[str], None]]:
    """Set the colour scheme that the reader prefers."""

    def set_(*features: dict[str, str]) -> None:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": list(features)})

    yield lambda scheme: set_({"name": "prefers-color-scheme", "value": scheme})
    set_()


def violations(page: Chrome, axe: str) -> list[str]:
    """What axe-core finds against WCAG 2.2 AA, as rule, weight and place."""
    page.execute_script(axe)
    found: dict[str, Any] = page.execute_async_script(
        "const done = arguments[0];"
        "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa',"
        " 'best-practice']}).then(done, e => done({error: String(e)}));"
    )
    assert found["passes"], found  # it did look
    return [
        f"{one['id']} ({one['impact']}): {one['nodes'][0]['target']} of {len(one['nodes'])}"
        for one in found["violations"]
    ]


# Every view once, in the scheme that is harder for it or in both.
@pytest.mark.parametrize(
    ("view", "scheme"),
    [
        *(("first", "light"), ("component", "dark"), ("plan", "light"), ("plan", "dark")),
        *(("two-plans", "light"), ("difference", "dark"), ("tables", "light")),
    ],
)
def test_axe_finds_nothing(
    open_page: Open, axe: str, prefer: Callable[[str], None], view: str, scheme: str
) -> None:
    prefer(scheme)
    small = circuit(heads=4, head_edges=20)
    page = open_page(small, plans=PLANS, other=circuit(heads=4, seed=1), hash_=VIEWS[view])
    dark = page.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark is (scheme == "dark")
    assert violations(page, axe) == []


def test_axe_does_find_a_fault(open_page: Open, axe: str) -> None:
    page = open_page(circuit())
    page.execute_script("document.querySelector('label[for=plan]').remove()")
    assert any(found.startswith("select-name (critical)") for found in violations(page, axe))


def test_print_hides_the_controls_and_is_light(open_page: Open) -> None:
    page = open_page(circuit(), plans=PLANS)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    try:
        assert not page.find_element(By.CSS_SELECTOR, ".controls").is_displayed()
        assert page.find_element(By.ID, "picture").is_displayed()
        ink = page.find_element(By.TAG_NAME, "h1").value_of_css_property("color")
        assert ink == "rgba(23, 33, 43, 1)"
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
