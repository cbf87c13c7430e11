from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from circuitsearch.core.errors import DataError
from circuitsearch.core.page_maps import PageMaps
from circuitsearch.show.page_maps import pages_data


def png(colour: str = "white") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(file, "PNG")
    return file.getvalue()


PAGE = PageMaps(
    question="What is\nthe total?",
    position="first answer token",
    image=png(),
    grid=(2, 3),
    maps={"C3.H1": np.array([0.5, 0.25, 0.125, 0.125, 0.0, 0.0])},
    readings={"C3": [("a", 0.123456)] * 6},
)
NAMES = {"C3", "C3.H1"}


def test_weights_come_back_to_half_a_step() -> None:
    _, (entry,) = pages_data([PAGE], NAMES)
    largest, steps = entry["maps"]["C3.H1"]
    back = np.frombuffer(base64.b64decode(steps), np.uint8) / 255 * largest
    assert largest == 0.5
    # Half of one of 255 steps of the largest weight.
    np.testing.assert_allclose(back, PAGE.maps["C3.H1"], atol=0.5 / 255 / 2 + 1e-12)
    assert entry["size"] == [60, 40]
    assert entry["question"] == "What is the total?"
    assert entry["readings"]["C3"][0] == ["a", 0.12]


def test_a_page_with_two_questions_is_embedded_once() -> None:
    pictures, entries = pages_data(
        [PAGE, replace(PAGE, question="b"), replace(PAGE, image=png("red"))], NAMES
    )
    assert len(pictures) == 2
    assert [entry["picture"] for entry in entries] == [0, 0, 1]
    assert base64.b64decode(pictures[0].partition(",")[2]) == PAGE.image


def test_a_head_that_looks_nowhere_gives_zeros() -> None:
    _, (entry,) = pages_data([replace(PAGE, maps={"C3.H1": [0.0] * 6})], NAMES)
    assert entry["maps"]["C3.H1"][0] == 0


def test_faults_are_told_together() -> None:
    wrong = replace(
        PAGE,
        image=b"GIF89a",
        maps={"C3.H1": [0.1] * 5, "C9.H0": [np.nan] * 6},
        readings={"C3": []},
    )
    with pytest.raises(DataError) as caught:
        pages_data([PAGE, wrong], NAMES)
    message = str(caught.value)
    for words in ("image is no PNG", "C3.H1 has 5 entries", "C9.H0: the graph has no", "C3 has 0"):
        assert f"pages[1]: {words}" in message or words in message
    assert "C9.H0: allowed are finite weights" in message
    assert "pages[0]" not in message
