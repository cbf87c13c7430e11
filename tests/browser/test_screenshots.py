"""The page of a real result in pictures; `make screenshots` keeps them for docs/circuit-page.md."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver import Chrome

Open = Callable[..., Chrome]
RESULT = Path(__file__).parents[2] / "results" / "quickstart"
VIEWS = {"circuit-page": "#select=C3", "circuit-page-plans": "#plan=MINT31&against=bottom"}
PLANS = {"MINT31": "M0 C2 S3 C3", "bottom": "S0 M0 C2 C3[0-3]"}


@pytest.mark.parametrize("name", VIEWS)
def test_the_page_of_the_quickstart_is_drawn(open_page: Open, tmp_path: Path, name: str) -> None:
    data = json.loads((RESULT / "circuit.json").read_text("utf-8"))
    page = open_page(data, plans=PLANS, title="Circuit of the quickstart", hash_=VIEWS[name])
    shot = page.get_screenshot_as_png()
    with Image.open(io.BytesIO(shot)) as image:
        # More than a frame and a heading: tints, hatching and two line colours.
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 100
        folder = Path(os.environ.get("CIRCUITSEARCH_SCREENSHOTS", tmp_path))
        # The method that keeps rare colours: the dashed lines are few pixels.
        small = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
        small.save(folder / f"{name}.png", optimize=True)
