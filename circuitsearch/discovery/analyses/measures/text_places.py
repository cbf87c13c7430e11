"""Where on a rendered page a piece of text stands, in encoder tokens.

Rendered pages know where each glyph's centre lies, and the tokens of an encoder that keeps the
page's grid stand for square patches, so "the answer's place" is a set of encoder tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from circuitsearch.core.shapes import patch_grid
from circuitsearch.teacher.documents.records import Page, Question
from circuitsearch.teacher.documents.render import Layout, characters
from circuitsearch.teacher.loading import Teacher

__all__ = ["TextPlaces", "answer_place", "text_places"]

_SEPARATOR = ": "


@dataclass(frozen=True)
class TextPlaces:
    """The encoder tokens under the text of one page.

    Attributes:
        lines: per line of the layout, (place in the line's text, encoder token) of each glyph.
    """

    lines: tuple[tuple[tuple[int, int], ...], ...]

    def of(self, line: int, start: int, end: int) -> tuple[int, ...]:
        """Return the encoder tokens, ascending, that hold the glyphs start to end - 1 of a line."""
        return tuple(sorted({token for i, token in self.lines[line] if start <= i < end}))


def text_places(teacher: Teacher, layout: Layout, tokens: int) -> TextPlaces | str:
    """Return the places of a page's text, or the reason why they cannot be known.

    Args:
        teacher: whose image processor says what size the encoder sees.
        layout: the page.
        tokens: number N of encoder tokens.
    """
    size = teacher.processor.image_processor.size
    height, width = size["height"], size["width"]
    grid = patch_grid(height, width, tokens)
    if grid is None:
        return "the encoder's tokens are no grid of square patches"
    if (layout.height, layout.width) != (height, width):
        return "the pages are drawn in another size than the encoder sees"
    side = width // grid[1]
    found = iter(characters(layout))
    lines = []
    for line in layout.lines:
        glyphs = []
        for i, character in enumerate(line.text):
            if character == " ":
                continue
            _, x, y = next(found)
            if 0 <= x < width and 0 <= y < height:
                glyphs.append((i, int(y // side) * grid[1] + int(x // side)))
        lines.append(tuple(glyphs))
    return TextPlaces(tuple(lines))


def answer_place(
    teacher: Teacher, page: Page, question: Question, tokens: int
) -> tuple[int, ...] | str:
    """Return the encoder tokens under a question's answer, or why they cannot be known.

    Args:
        teacher: whose encoder it is.
        page: the page that is asked about.
        question: one of its questions; its answer has to be a whole line, or what a line has behind
            its key.
        tokens: number N of encoder tokens.
    """
    if not isinstance(page.source, Layout):
        return "the pages are images whose text is not known place by place"
    places = text_places(teacher, page.source, tokens)
    if isinstance(places, str):
        return places
    answer = question.answers[0]
    texts = [line.text for line in page.source.lines]
    ends = [
        i for i, text in enumerate(texts) if text == answer or text.endswith(_SEPARATOR + answer)
    ]
    if len(ends) != 1:
        return "the answers stand on no line of their own"
    end = len(texts[ends[0]])
    return places.of(ends[0], end - len(answer), end) or "the answers lie outside the page"
