"""Pages of `key: value` lines, and their shuffled counterparts (Donut-MINT, arXiv 2509.26235, 1.6).

A page has four lines, each a key and a value, and one key is asked for. Two shuffled pages go with
it, made of the same keys and values in the same four places:

    pairs   the asked key stands in another place with another value, and its old place holds a
            third value: the value of a place, the new value and the old value of the key all differ
    values  keys stay, values are permuted: what now stands at the key's place is its new value, so
            place and meaning cannot be told apart (the literal wording of the paper)

Values on one page start with different tokens, so that the first token an answer begins with tells
which of them it is, whatever the tokenizer. Where a vocabulary has enough values of a single token
for this, only these are used.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from circuitsearch.core.files import seed_from
from circuitsearch.teacher.documents.render import FONTS, Layout, Line, text_width
from circuitsearch.teacher.tokens import TeacherTokens

__all__ = ["LINES", "VOCABULARIES", "Drawer", "Lines", "Trial", "Vocabulary", "layout_of"]

Lines = tuple[tuple[str, str], ...]
"""Key and value of each line, from top to bottom."""

LINES = 4
_SEPARATOR = ": "
_MARGIN, _LARGEST, _SMALLEST = 4, 48, 4
"""Pixels: left and right margin, largest and smallest face."""


@dataclass(frozen=True)
class Vocabulary:
    """Keys and values that pages are made of.

    Attributes:
        name: as tables say it.
        values: possible values.
        keys: possible keys; none where keys are drawn from the values too, as in the paper.
        wording: the question, with `{key}` in it.
        paper: published shares in percent (place, meaning, memory, failure); none without.
    """

    name: str
    values: tuple[str, ...]
    keys: tuple[str, ...] = ()
    wording: str = "What is {key}?"
    paper: tuple[float, ...] = ()


_COLOURS = "red blue green white black yellow pink brown gray orange purple gold silver violet"
_NOUNS = (
    "apple house river table window garden horse doctor mountain kitchen letter bottle engine "
    "forest island"
)
_NUMBERS = "one two three four five six seven eight nine ten eleven twelve twenty"
_NAMES = (
    "Bani Depo Fuki Gola Kemu Lida Mavo Neti Pora Rusi Sefa Tugo Vime Zalu Bole Difu Goka Kani "
    "Lupe Muro Nabi Pite Ravo Sudi"
)
_FIELD = "What is the {key}?"

VOCABULARIES: tuple[Vocabulary, ...] = (
    Vocabulary("colours", tuple(_COLOURS.split()), paper=(53.0, 31.0, 8.0, 8.0)),
    Vocabulary("nouns", tuple(_NOUNS.split()), paper=(40.4, 26.2, 3.7, 29.7)),
    Vocabulary("spelled numbers", tuple(_NUMBERS.split()), paper=(37.2, 44.6, 9.1, 9.1)),
    Vocabulary("names", tuple(_NAMES.split()), ("city", "street", "origin", "bank"), _FIELD),
    Vocabulary(
        "capital letters",
        tuple("ABCDEFGHKLMNPRSTUVXYZ"),
        ("grade", "zone", "gate", "unit", "copy"),
        _FIELD,
    ),
    Vocabulary("digits", tuple("0123456789"), ("gate", "unit", "copy", "room", "ref"), _FIELD),
)
"""The three of the paper, and three whose keys are fields of a form."""


@dataclass(frozen=True)
class Trial:
    """One question about one page, and the page's shuffled counterparts.

    Attributes:
        name: unique; it stands for the document.
        key: the key that is asked for.
        question: the question.
        clean: the page.
        pairs: keys and values shuffled.
        values: values shuffled.
    """

    name: str
    key: str
    question: str
    clean: Lines
    pairs: Lines
    values: Lines

    def place(self, lines: Lines) -> int:
        """Return the line on which the asked key stands."""
        return [key for key, _ in lines].index(self.key)

    def answer(self, lines: Lines) -> str:
        """Return the value of the asked key."""
        return dict(lines)[self.key]

    def expected(self, page: Lines, origin: Lines) -> tuple[str, str, str]:
        """Return what a query that was made on one page would find on another.

        Args:
            page: the page that is read.
            origin: the page that the query was made on.

        Returns:
            The value at the old place, the key's value there, the key's value where the query was
            made.
        """
        return page[self.place(origin)][1], self.answer(page), self.answer(origin)


@dataclass(frozen=True)
class Drawer:
    """Draws the trials of one vocabulary for one teacher.

    Attributes:
        vocabulary: keys and values.
        values: the values that are used with this tokenizer.
        firsts: the token that each possible answer begins with.
        tokens: prompt and tokenizer.
        seed: of the draws.
    """

    vocabulary: Vocabulary
    values: tuple[str, ...]
    firsts: Mapping[str, int]
    tokens: TeacherTokens
    seed: int

    @classmethod
    def of(cls, vocabulary: Vocabulary, tokens: TeacherTokens, seed: int) -> Drawer | None:
        """Return a drawer, None where this tokenizer leaves too few values to tell apart."""
        bare = len(tokens.answer_ids(""))
        unknown = tokens.tokenizer.unk_token_id
        ids = {value: tokens.answer_ids(value) for value in vocabulary.values}
        known = [value for value in vocabulary.values if unknown not in ids[value]]
        short = [value for value in known if len(ids[value]) == bare + 1]
        firsts = {value: ids[value][0] for value in known}
        # where keys are values too, a page needs twice as many words
        needed = LINES if vocabulary.keys else 2 * LINES
        for values in (short, known):
            if len(values) >= needed and len({firsts[value] for value in values}) >= LINES:
                return cls(vocabulary, tuple(values), firsts, tokens, seed)
        return None

    def trial(self, index: int) -> Trial:
        """Return trial `index`, a pure function of vocabulary, seed and index."""
        name = self.vocabulary.name
        rng = random.Random(seed_from("retrieval", name, self.seed, index))
        values = self._values(rng)
        words = self.vocabulary.keys or [v for v in self.values if v not in values]
        keys = rng.sample(list(words), LINES)
        clean = tuple(zip(keys, values, strict=True))
        asked = rng.randrange(LINES)
        places, moved = _shuffled(rng, asked)
        kept = rng.sample(range(LINES), LINES)
        while kept[asked] == asked:
            kept = rng.sample(range(LINES), LINES)
        return Trial(
            name=f"{name} {index}",
            key=keys[asked],
            question=self.vocabulary.wording.replace("{key}", keys[asked]),
            clean=clean,
            pairs=tuple((keys[k], values[v]) for k, v in zip(places, moved, strict=True)),
            values=tuple((key, values[v]) for key, v in zip(keys, kept, strict=True)),
        )

    def _values(self, rng: random.Random) -> list[str]:
        """Draw values that start with different tokens."""
        chosen: list[str] = []
        taken: set[int] = set()
        for value in rng.sample(list(self.values), len(self.values)):
            if self.firsts[value] not in taken:
                taken.add(self.firsts[value])
                chosen.append(value)
        return chosen[:LINES]


def layout_of(lines: Lines, height: int, width: int) -> Layout:
    """Return a page of that many pixels, in the largest face that fits it.

    Any key has to fit in front of any value, so that shuffled pages are drawn in the same face.
    """
    pitch = height // LINES
    size = min(_LARGEST, int(0.75 * pitch))
    while size > _SMALLEST and _widest(lines, size) > width - 2 * _MARGIN:
        size -= 1
    drawn = [
        Line(_SEPARATOR.join(line), _MARGIN, i * pitch + max(0, (pitch - size) // 4))
        for i, line in enumerate(lines)
    ]
    return Layout(tuple(drawn), FONTS[0], size, height=height, width=width)


def _shuffled(rng: random.Random, asked: int) -> tuple[list[int], list[int]]:
    """Return orders of keys and of values, so that place, meaning and memory all differ.

    They differ both for the clean page's query on the shuffled page and the other way round.
    """
    while True:
        keys, values = (rng.sample(range(LINES), LINES) for _ in range(2))
        place = keys.index(asked)
        new, at_old_place = values[place], values[asked]
        moved = place != asked and new != asked
        if moved and at_old_place not in (new, asked) and place not in (new, asked):
            return keys, values


def _widest(lines: Lines, size: int) -> float:
    """Return the width in pixels of the widest key in front of the widest value."""
    keys = max(text_width(key + _SEPARATOR, FONTS[0], size) for key, _ in lines)
    return keys + max(text_width(value, FONTS[0], size) for _, value in lines)
