"""Where a teacher's heads look on pages, for the circuit page.

One pass per batch of questions: before each cross-attention the stream is there, and its attention
weights at the position that predicts the first answer token are one small product. The picture is
what the encoder saw, resized and padded, so that patches and weights lie on each other.

The pages' images end up in a file that may be mailed around: a search shows rendered pages, and
the user's own documents only when the search file asks for them (`circuit.shown_pages`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from circuitsearch.core.components import Kind
from circuitsearch.core.errors import ConfigError, integer_problems, raise_together
from circuitsearch.core.page_maps import PageMaps
from circuitsearch.core.shapes import patch_grid
from circuitsearch.discovery.lens.attention_maps import attention_map
from circuitsearch.discovery.lens.positions import Located, located_batches
from circuitsearch.discovery.lens.transcription import transcribe
from circuitsearch.discovery.sample import Sample, make_sample
from circuitsearch.teacher.decoders import write
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.loading import Teacher

__all__ = ["has_grid", "page_maps"]


def page_maps(teacher: Teacher, pages: Sequence[Page], *, width: int = 640) -> tuple[PageMaps, ...]:
    """Return, for every question, where every cross-attention head looks.

    The file grows by rows * columns * 4 / 3 bytes per head and question (Donut: 6.4 kB), and by
    the image of each page: give a few questions.

    Args:
        teacher: the teacher.
        pages: the pages; those without questions are left out.
        width: largest width of the pictures in pixels.

    Raises:
        ConfigError: the width is below 1, or square patches do not tile the encoder's input.
        DataError: no page has a question.
    """
    raise_together(integer_problems("width", width, 1), ConfigError, "Page maps")
    sample = make_sample(teacher, pages)
    grid = _grid(teacher, sample.states.shape[1])
    asked = [page for page in pages if page.questions]
    images = [_seen(teacher, page, width) for page in asked]
    readings = _readings(teacher, sample)
    found: list[PageMaps] = []
    with torch.no_grad():
        for at in located_batches(sample, "answer_start"):
            maps = _maps(teacher, at)
            for row, place in enumerate(at.spots.rows.tolist()):
                page = sample.rows[at.first + place].page
                found.append(
                    PageMaps(
                        question=at.batch.examples[place].question.text,
                        position="before the first answer token",
                        image=images[page],
                        grid=grid,
                        maps={name: weights[row].tolist() for name, weights in maps.items()},
                        readings=readings[page],
                    )
                )
    return tuple(found)


def has_grid(teacher: Teacher) -> bool:
    """Tell whether square patches that encoder states stand for tile the encoder's input."""
    return patch_grid(*_size(teacher), teacher.shape.encoder.tokens) is not None


def _grid(teacher: Teacher, tokens: int) -> tuple[int, int]:
    """Return rows and columns of the square patches that N encoder tokens stand for."""
    height, width = _size(teacher)
    grid = patch_grid(height, width, tokens)
    if grid is None:
        raise ConfigError(
            f"Page maps: {tokens} encoder tokens are no grid of square patches on an input of "
            f"{height} x {width} pixels; choose a teacher whose encoder keeps the page's grid"
        )
    return grid


def _size(teacher: Teacher) -> tuple[int, int]:
    size = teacher.processor.image_processor.size
    return size["height"], size["width"]


def _seen(teacher: Teacher, page: Page, width: int) -> bytes:
    """Return the page as the encoder sees it, as a PNG file."""
    processor = teacher.processor.image_processor
    pixels = teacher.pixel_values([page.image()])[0].float().cpu().numpy()
    if processor.do_normalize:
        mean, sd = (np.array(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
        pixels = pixels * sd + mean
    levels = (pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(levels)
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _maps(teacher: Teacher, at: Located) -> dict[str, np.ndarray]:
    """Return the weights [K, N] of every cross-attention head at the batch's K spots."""
    decoder = teacher.decoder
    memory = decoder.memory(at.states, at.batch.pages)
    x = decoder.embed(at.batch.ids)
    maps: dict[str, np.ndarray] = {}
    for sublayer in decoder.sublayers:
        if sublayer.kind is Kind.CROSS:
            weights: Tensor = attention_map(decoder, sublayer, x, memory, at.spots)
            for head in range(weights.shape[1]):
                maps[f"{sublayer}.H{head}"] = weights[:, head].cpu().numpy()
        x = x + write(decoder, sublayer, x, memory)
    return maps


def _readings(teacher: Teacher, sample: Sample) -> list[dict[str, list[tuple[str, float]]]]:
    """Return, by page, what each cross-attention's transcription lens reads on every patch."""
    read: list[dict[str, list[tuple[str, float]]]] = [{} for _ in sample.states]
    for sublayer in teacher.decoder.sublayers:
        if sublayer.kind is not Kind.CROSS:
            continue
        said = transcribe(teacher.decoder, sample.states, sublayer.name)
        said = said.with_pieces(teacher.processor.tokenizer)
        tops = zip(said.top[..., 0].tolist(), said.top_probabilities[..., 0].tolist(), strict=True)
        for page, (ids, probabilities) in enumerate(tops):
            words = [said.pieces[token] for token in ids]
            read[page][sublayer.name] = list(zip(words, probabilities, strict=True))
    return read
