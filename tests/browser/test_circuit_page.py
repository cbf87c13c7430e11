from __future__ import annotations

import csv
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.show.circuits import EFFECTS, circuit

Open = Callable[..., Chrome]
PLANS = {"MINT31": "M0 C2 S3 C3", "heads": "S3[0-2,5] C3[4,7] M0:512"}
EVIL = "</script><img src=x onerror=alert(1)>"
SVG = "{http://www.w3.org/2000/svg}"


def one(page: Chrome, selector: str) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, selector)


def count(page: Chrome, selector: str) -> int:
    return len(page.find_elements(By.CSS_SELECTOR, selector))


def frame(page: Chrome, name: str) -> WebElement:
    return one(page, f'#picture .box[aria-label^="{name},"]')


def component(page: Chrome, name: str) -> WebElement:
    return frame(page, name).find_element(By.XPATH, "..")


def classes(page: Chrome, name: str) -> set[str]:
    return set((component(page, name).get_attribute("class") or "").split())


def click(page: Chrome, name: str) -> None:
    """Click the left part of a component: its middle may lie under its heads."""
    part = component(page, name)
    box = part.size
    ActionChains(page).move_to_element_with_offset(
        part, -int(box["width"] / 2) + 8, 0
    ).click().perform()


def press(page: Chrome, *keys: str) -> None:
    ActionChains(page).send_keys(*keys).perform()


def slide(page: Chrome, place: int) -> None:
    page.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
        one(page, "#strength"),
        place,
    )


def text(page: Chrome, selector: str) -> str:
    return one(page, selector).text


def saved(folder: Path, name: str, page: Chrome, button: str) -> Path:
    """Press a button that saves a file, and return the file."""
    path = folder / name
    path.unlink(missing_ok=True)
    one(page, button).click()
    WebDriverWait(page, 10).until(lambda _: path.is_file() and path.stat().st_size > 0)
    return path


def address(page: Chrome) -> str:
    time.sleep(0.25)  # the page waits 150 ms before it writes its address
    return page.current_url.partition("#")[2]


def test_the_page_opens_with_300_edges_and_the_slider_changes_them(open_page: Open) -> None:
    page = open_page(circuit(heads=16, head_edges=3400))
    assert count(page, "#edges path") == 300
    assert text(page, "#shown").startswith("300 of 3,5")
    slide(page, 1000)
    assert count(page, "#edges path") == 3559
    slide(page, 0)
    assert count(page, "#edges path") == 0
    one(page, "#strength").send_keys(Keys.ARROW_RIGHT * 60)
    assert count(page, "#edges path") == round(3559 * 0.06**2)


def test_negative_edges_are_dashed_as_well_as_coloured(open_page: Open) -> None:
    page = open_page(circuit())
    looks = {
        sign: {
            (path.value_of_css_property("stroke"), path.value_of_css_property("stroke-dasharray"))
            for path in page.find_elements(By.CSS_SELECTOR, f"#edges path.{sign}")
        }
        for sign in ("positive", "negative")
    }
    assert [dash for _, dash in looks["positive"]] == ["none"]
    assert [dash for _, dash in looks["negative"]] == ["5px, 4px"]
    assert len({colour for look in looks.values() for colour, _ in look}) == 2


def test_hover_lights_the_edges_of_a_component_and_says_how_many(open_page: Open) -> None:
    page = open_page(circuit())
    part = component(page, "S1")
    ActionChains(page).move_to_element_with_offset(
        part, -int(part.size["width"] / 2) + 8, 0
    ).perform()
    # Of 12 sub-layers, 4 (with the embedding) write to S1, 9 (with the logits) read it.
    assert text(page, "#tip").endswith("shown edges: 4 in, 9 out")
    assert count(page, "#edges path.lit") == 13


def test_a_click_shows_score_effect_interval_cost_and_the_strongest_paths(open_page: Open) -> None:
    data = circuit()
    next(node for node in data["nodes"] if node["id"] == "C2").update(
        effect_low=0.5, effect_high=1.25
    )
    page = open_page(data)
    click(page, "C2")
    panel = text(page, "#panel")
    for words in (
        "C2",
        "effect (measured)\n+0.82",
        "score (estimated)",
        "+0.5 to +1.25",
        "36,600,",
    ):
        assert words in panel
    paths = page.find_elements(By.CSS_SELECTOR, "#panel .paths button")
    assert len(paths) == 5
    shares = [float(path.text.split()[-2]) for path in paths]
    assert shares == sorted(shares, reverse=True)
    assert all("C2" in path.text and path.text.strip().split()[2] != "" for path in paths)
    ActionChains(page).move_to_element(paths[0]).perform()
    hops = paths[0].text.count("\u2192")
    assert count(page, "#trail path.lit") == hops > 1
    paths[0].click()
    click(page, "C2")  # a second click closes it
    assert text(page, "#panel h2") == "Overview"
    assert count(page, "#trail path") == 0


def test_a_path_is_drawn_even_when_the_slider_hides_its_edges(open_page: Open) -> None:
    page = open_page(circuit())
    slide(page, 0)
    click(page, "M1")
    one(page, "#panel .paths button").click()
    assert count(page, "#edges path") == 0
    assert count(page, "#trail path") > 1
    assert one(page, "#panel .paths button").get_attribute("aria-pressed") == "true"
    assert "stays drawn" in text(page, "#said")


def test_a_plan_is_laid_over_picture_and_table(open_page: Open) -> None:
    page = open_page(circuit(), plans=PLANS)
    Select(one(page, "#plan")).select_by_visible_text("heads")
    assert "removed" in classes(page, "S0")
    assert "removed" in classes(page, "C3.H0")
    assert "kept" in classes(page, "C3.H4")
    assert "partly" in classes(page, "M0")
    rows = {
        row.text.split()[0]: row.text for row in page.find_elements(By.CSS_SELECTOR, "tbody tr")
    }
    assert "2 of 8 heads kept" in rows["C3"]
    assert "removed" in rows["S0"]
    assert count(page, "#edges path.cut") > 50  # most sub-layers are gone
    assert text(page, "#said") == "Plan heads: 9 sub-layers removed, 3 kept in part"


def test_two_plans_are_compared(open_page: Open) -> None:
    page = open_page(circuit(), plans=PLANS)
    assert not one(page, "#against").is_enabled()
    Select(one(page, "#plan")).select_by_visible_text("MINT31")
    Select(one(page, "#against")).select_by_visible_text("heads")
    shown = {
        name: classes(page, name) & {"removed", "onlya", "onlyb", "differs", "kept"}
        for name in ("S0", "C2", "C2.H3", "M0", "C3", "C3.H4", "C3.H5")
    }
    assert shown == {
        "S0": {"removed"},
        "C2": {"onlya"},
        "C2.H3": {"onlya"},
        "M0": {"differs"},
        "C3": {"differs"},
        "C3.H4": {"kept"},
        "C3.H5": {"onlya"},
    }
    marks = page.execute_script(
        "return [...document.querySelectorAll('.mark')].map(x => x.textContent).join('')"
    )
    assert set(marks) == {"A", "≠"}
    assert "only in A\nC2 S3.H3 S3.H4 S3.H6 S3.H7 C3.H0" in text(page, "#panel")
    Select(one(page, "#plan")).select_by_index(0)
    assert count(page, ".onlya") == 0
    assert not one(page, "#against").is_enabled()


def changed() -> dict[str, Any]:
    """The circuit with a stronger C3 and without any edge into M1."""
    data = circuit()
    next(node for node in data["nodes"] if node["id"] == "C3")["effect"] = EFFECTS["C3"] + 0.5
    data["edges"] = [edge for edge in data["edges"] if edge["target"] != "M1"]
    return data


def test_two_graphs_are_compared(open_page: Open) -> None:
    page = open_page(circuit(), other=changed(), names=("teacher", "elastic teacher"))
    choice = Select(one(page, "#graph"))
    assert [option.text for option in choice.options] == [
        *("teacher", "elastic teacher", "elastic teacher minus teacher")
    ]
    assert count(page, "#edges path") == 95
    choice.select_by_index(1)
    assert count(page, "#edges path") == 95 - 6
    assert "effect +3.24" in (frame(page, "C3").get_attribute("aria-label") or "")
    choice.select_by_index(2)
    assert count(page, "#edges path") == 6
    click(page, "C3")
    panel = text(page, "#panel")
    assert "change of effect (measured)\n+0.5" in panel
    assert "effect in teacher\n+2.74" in panel
    assert "effect in elastic teacher\n+3.24" in panel
    effect = page.execute_script(
        "return [...document.querySelectorAll('#components tr')]"
        ".find(r => r.textContent.startsWith('C3c')).querySelector('[data-key=effect]').textContent"
    )
    assert effect == "+0.5"


def test_search_marks_components_and_enter_goes_through_them(open_page: Open) -> None:
    page = open_page(circuit())
    box = one(page, "#search")
    box.send_keys("m3")
    assert text(page, "#matches") == "1 component"
    assert "found" in classes(page, "M3")
    assert count(page, "#components tbody tr:not([hidden])") == 1
    box.send_keys(Keys.ENTER)
    assert text(page, "#panel h2") == "M3"
    box.clear()
    box.send_keys("feed")
    titles = []
    for _ in range(5):
        box.send_keys(Keys.ENTER)
        titles.append(text(page, "#panel h2"))
    assert titles == ["M0", "M1", "M2", "M3", "M0"]
    box.clear()
    box.send_keys("nothing")
    assert text(page, "#matches") == "0 components"


def test_the_tables_are_saved_as_csv(open_page: Open, downloads: Path) -> None:
    data = circuit()
    data["edges"][0]["port"] = '=HYPERLINK("x"), y'
    page = open_page(data, plans=PLANS)
    Select(one(page, "#plan")).select_by_visible_text("heads")
    one(page, "#view").click()
    assert not one(page, "#picture").is_displayed()
    path = saved(downloads, "components.csv", page, "#save-components")
    with path.open(newline="") as file:
        rows = {row["component"]: row for row in csv.DictReader(file)}
    assert len(rows) == 12 + 64 + 3
    assert float(rows["C3"]["effect"]) == EFFECTS["C3"]
    assert rows["C3"]["plan"] == "2 of 8 heads kept"
    assert rows["C3"]["parameters (paper)"] == "66048"
    assert rows["logits"]["effect"] == ""
    path = saved(downloads, "edges.csv", page, "#save-edges")
    with path.open(newline="") as file:
        edges = list(csv.DictReader(file))
    assert len(edges) == 95 == count(page, "#edge-table tbody tr")
    # A spreadsheet must not run a name.
    assert [e["reader"] for e in edges if "HYPER" in e["reader"]] == ['\'=HYPERLINK("x"), y']


def test_the_picture_is_saved_as_svg_that_stands_alone(open_page: Open, downloads: Path) -> None:
    page = open_page(circuit())
    root = ET.fromstring(saved(downloads, "circuit.svg", page, "#save-picture").read_text("utf-8"))
    assert root.tag == f"{SVG}svg"
    edges = root.findall(f".//{SVG}g[@id='edges']/{SVG}path")
    assert len(edges) == 95
    assert all(
        edge.get("stroke", "").startswith("rgb(") and edge.get("fill") == "none" for edge in edges
    )
    assert not any(
        "class" in element.attrib or "style" in element.attrib for element in root.iter()
    )
    names = {element.text for element in root.iter(f"{SVG}text")}
    assert set(EFFECTS) <= names


def test_the_address_holds_the_view(open_page: Open) -> None:
    page = open_page(circuit(head_edges=50), plans={**PLANS, "a & b": "C3"})
    assert address(page) == ""
    Select(one(page, "#plan")).select_by_visible_text("a & b")
    Select(one(page, "#against")).select_by_visible_text("heads")
    Select(one(page, "#level")).select_by_value("rows")
    slide(page, 500)
    click(page, "C2")
    one(page, "#search").send_keys("S3")
    kept = address(page)
    assert kept == "level=rows&edges=24&plan=a+%26+b&against=heads&select=C2&find=S3"
    page.get("about:blank")
    open_page(circuit(head_edges=50), plans={**PLANS, "a & b": "C3"}, hash_=f"#{kept}")
    assert count(page, "#edges path") == 24
    assert text(page, "#panel h2") == "C2"
    assert Select(one(page, "#plan")).first_selected_option.text == "a & b"
    assert Select(one(page, "#against")).first_selected_option.text == "heads"
    assert text(page, "#matches") == "9 components"
    assert address(page) == kept


def test_an_address_that_names_nothing_gives_the_usual_view(open_page: Open) -> None:
    wrong = "#graph=7&level=x&edges=-3&plan=__proto__&against=heads&select=<img>&find=&view=%E0%A4"
    page = open_page(circuit(), plans=PLANS, hash_=wrong)
    assert count(page, "#edges path") == 95
    assert text(page, "#panel h2") == "Overview"
    assert Select(one(page, "#plan")).first_selected_option.text.startswith("none")


def focused(page: Chrome) -> str:
    label = page.switch_to.active_element.get_attribute("aria-label") or ""
    return label.split(",")[0]


def test_everything_can_be_done_with_the_keyboard(open_page: Open) -> None:
    page = open_page(circuit())
    # Tab reaches the picture, which is one stop, from the last control.
    page.execute_script("arguments[0].focus()", one(page, "#save-picture"))
    press(page, Keys.TAB)
    assert focused(page) == "S0"
    press(page, Keys.ARROW_UP)
    assert focused(page) == "C0"
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert focused(page) == "C0.H1"
    ring = page.switch_to.active_element
    assert ring.value_of_css_property("stroke-width") == "3px"
    press(page, Keys.END)
    assert focused(page) == "logits"
    press(page, Keys.ARROW_DOWN, Keys.ENTER)
    assert text(page, "#panel h2") == "M3"
    assert text(page, "#said").startswith("Selected M3, feed-forward, effect")
    press(page, Keys.TAB)  # from the picture to the panel: first its close button
    assert page.switch_to.active_element.text == "close"
    press(page, Keys.TAB)
    assert page.switch_to.active_element.get_attribute("aria-pressed") == "false"
    assert count(page, "#trail path") > 0  # focus is enough to see a path
    press(page, Keys.ESCAPE)
    assert text(page, "#panel h2") == "Overview"
    assert focused(page) == "M3"


def test_the_tables_sort_and_open_components_with_the_keyboard(open_page: Open) -> None:
    page = open_page(circuit())
    head = next(
        cell
        for cell in page.find_elements(By.CSS_SELECTOR, "#components th")
        if cell.text == "Effect"
    )
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    first = one(page, "#components tbody th button")
    assert first.text == "C3"  # the largest effect
    first.send_keys(Keys.ENTER)
    assert text(page, "#panel h2") == "C3"
    assert page.switch_to.active_element.text == "C3"


def test_foreign_text_is_shown_and_never_run(open_page: Open) -> None:
    data = circuit()
    data["graph"]["recipe"].update(teacher=EVIL, metric=EVIL)
    data["edges"][0]["port"] = EVIL
    page = open_page(
        data, plans={EVIL: "C3", "b": "C2"}, title=EVIL, other=circuit(), names=(EVIL, "other")
    )
    assert EVIL in page.title
    Select(one(page, "#plan")).select_by_index(1)
    Select(one(page, "#against")).select_by_visible_text("b")
    for name in ("embedding", "S0", "C3"):
        click(page, name)
    Select(one(page, "#graph")).select_by_index(2)
    one(page, "#view").click()
    assert count(page, "img") == 0
    assert EVIL in text(page, "#panel")


def test_a_request_would_be_refused_and_noticed(open_page: Open) -> None:
    page = open_page(circuit())
    page.execute_async_script(
        "const done = arguments[0]; console.error('heard');"
        "fetch('https://example.invalid/').catch(() => done())"
    )
    heard = str(page.get_log("browser"))  # reading empties it
    assert "heard" in heard
    assert "Content Security Policy" in heard
