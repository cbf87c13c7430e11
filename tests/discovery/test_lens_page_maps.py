"""Maps against the eager implementation of Hugging Face, and through the circuit page."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.core.page_maps import PageMaps
from circuitsearch.discovery.lens.page_maps import page_maps
from circuitsearch.discovery.sample import make_sample
from circuitsearch.show.viewer import circuit_html
from circuitsearch.teacher.loading import Teacher
from tests.discovery.lens_literal import attentions
from tests.show.circuits import circuit
from tests.tiny import tiny_pages


@pytest.fixture(scope="module")
def found(tiny_teacher: Teacher) -> tuple[PageMaps, ...]:
    return page_maps(tiny_teacher, tiny_pages(3))


def test_maps_equal_eager_attention_where_the_answer_begins(
    tiny_teacher: Teacher, found: tuple[PageMaps, ...]
) -> None:
    sample = make_sample(tiny_teacher, tiny_pages(3))
    assert len(found) == 1 + 2 + 3
    for entry, row in zip(found, sample.rows, strict=True):
        assert entry.question == row.question.text
        assert len(entry.maps) == 4 * 4
        known = attentions(tiny_teacher.model.decoder, sample, row)
        for name, weights in entry.maps.items():
            sublayer, head = name.split(".H")
            # float32 on both sides, the same operations in another order
            np.testing.assert_allclose(
                weights, known[sublayer][int(head), row.prompt - 1], rtol=1e-4, atol=1e-6
            )


def test_the_picture_is_what_the_encoder_sees(
    tiny_teacher: Teacher, found: tuple[PageMaps, ...]
) -> None:
    page = tiny_pages(3)[1]
    with Image.open(io.BytesIO(found[1].image)) as image:
        assert image.size == (48, 32)
        again = tiny_teacher.pixel_values([image])
    # 8-bit levels, normalised with a standard deviation of one half: half a level is 1 / 255.
    expected = tiny_teacher.pixel_values([page.image()])
    np.testing.assert_allclose(again.numpy(), expected.numpy(), atol=1.01 / 255)
    assert found[1].image is found[2].image  # one page, two questions
    assert found[0].image != found[1].image


def test_every_cross_attention_reads_every_patch(found: tuple[PageMaps, ...]) -> None:
    rows, columns = found[0].grid
    assert (rows, columns) == (4, 6)
    assert set(found[0].readings) == {"C0", "C1", "C2", "C3"}
    for reading in found[0].readings.values():
        assert len(reading) == rows * columns
        assert all(text and 0 < probability <= 1 for text, probability in reading)


def test_the_circuit_page_takes_them(found: tuple[PageMaps, ...]) -> None:
    page = circuit_html(circuit(heads=4), pages=found)
    assert "img-src data:;" in page
    assert page.count("data:image/png;base64,") == 3
    assert "data:image" not in circuit_html(circuit(heads=4))


def test_pages_without_questions_and_a_width_of_nothing_are_refused(tiny_teacher: Teacher) -> None:
    with pytest.raises(DataError, match="has a question"):
        page_maps(tiny_teacher, [])
    with pytest.raises(ConfigError, match="width"):
        page_maps(tiny_teacher, tiny_pages(1), width=0)
