from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from circuitsearch.core.page_maps import PageMaps
from tests.show.circuits import circuit
from tests.show.test_page_maps import png

Open = Callable[..., Chrome]


def pages() -> list[PageMaps]:
    weights = np.array([0.5, 0.25, 0.25, 0.0, 0.0, 0.0])
    readings = {"C3": [("total", 0.9), ("<b>", 0.5), *[("?", 0.1)] * 4]}
    facts = {"position": "first answer token", "image": png(), "grid": (2, 3)}
    return [
        PageMaps(
            question="total?",
            maps={"C3.H1": weights, "C3.H2": weights[::-1]},
            readings=readings,
            **facts,
        ),
        PageMaps(question="date?", maps={"C3.H1": weights[::-1]}, **facts),
    ]


def looked(page: Chrome) -> list[str]:
    return [item.text for item in page.find_elements(By.CSS_SELECTOR, ".looked li")]


def opacities(page: Chrome) -> list[float]:
    patches = page.find_elements(By.CSS_SELECTOR, ".patch")
    return [float(patch.get_attribute("fill-opacity") or "") for patch in patches]


def test_a_head_shows_where_it_looks_for_the_chosen_question(open_page: Open) -> None:
    page = open_page(circuit(), pages=pages(), hash_="#select=C3.H1")
    loaded = page.execute_async_script(
        "const done = arguments[0], i = new Image(); i.onload = () => done(i.naturalWidth);"
        "i.onerror = () => done(0);"
        "i.src = document.querySelector('.heat image').getAttribute('href')"
    )
    assert loaded == 60  # the policy lets the embedded page through
    assert looked(page)[0] == "row 1, column 1: 50 %, reads “total”"
    # The strongest patch is the most opaque, those without weight are clear.
    assert opacities(page) == pytest.approx([0.7, *[0.7 * 0.5**0.5] * 2, 0, 0, 0], abs=2e-3)
    Select(page.find_element(By.ID, "question")).select_by_visible_text("date?")
    assert looked(page)[0] == "row 2, column 3: 50 %"
    assert page.switch_to.active_element.get_attribute("id") == "question"


def test_a_sublayer_shows_the_mean_of_its_heads(open_page: Open) -> None:
    page = open_page(circuit(), pages=pages(), hash_="#select=C3")
    assert looked(page)[0].startswith("row 1, column 1: 25 %")
    assert max(opacities(page)) == pytest.approx(0.7)
    assert min(opacities(page)) == pytest.approx(0.7 * 0.5**0.5, abs=3e-3)


def test_the_transcription_lens_writes_confident_readings_onto_patches(open_page: Open) -> None:
    page = open_page(circuit(), pages=pages(), hash_="#select=C3.H2")
    page.find_element(By.ID, "read").click()
    words = [one.text for one in page.find_elements(By.CSS_SELECTOR, ".reading")]
    assert words == ["total", "<b>"]
    fits = page.execute_script(
        "const boxes = q => [...document.querySelectorAll(q)].map(x => x.getBBox());"
        "const patches = boxes('.patch');"
        "return boxes('.reading').map((b, i) => b.x >= patches[i].x && b.y >= patches[i].y"
        " && b.x + b.width <= patches[i].x + patches[i].width"
        " && b.y + b.height <= patches[i].y + patches[i].height)"
    )
    assert fits == [True, True]
    patch = page.find_elements(By.CSS_SELECTOR, ".patch")[5]
    ActionChains(page).move_to_element(patch).perform()
    assert page.find_element(By.ID, "tip").text == "row 2, column 3: 50 %"


def test_components_without_maps_show_no_page(open_page: Open) -> None:
    page = open_page(circuit(), pages=pages(), hash_="#select=S3")
    assert page.find_elements(By.CSS_SELECTOR, ".heat") == []


def test_axe_finds_nothing_in_a_heat_map(open_page: Open, axe: str) -> None:
    page = open_page(circuit(heads=4), pages=pages(), hash_="#select=C3.H1&read=yes")
    page.execute_script(axe)
    found = page.execute_async_script("axe.run(document).then(arguments[0])")
    assert [one["id"] for one in found["violations"]] == []
