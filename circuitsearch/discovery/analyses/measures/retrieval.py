"""What the answers are when queries are exchanged, where attention goes, what skipping costs.

An answer is one of four: the value at the place where the key stood when the query was made
(place), the key's value on the page that is read (meaning), the key's value on the page that the
query comes from (memory), or anything else (failure).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.files import seed_from
from circuitsearch.teacher.intervals import wilson_interval
from circuitsearch.teacher.loading import Teacher

from ..material import Material
from ..shared import Interval, mean_interval
from .place_shares import place_shares
from .retrieval_pages import VOCABULARIES, Drawer, Trial, Vocabulary, layout_of
from .retrieval_runs import Kept, Pace, draw_trials, right_without, said
from .text_places import text_places

__all__ = [
    "HYPOTHESES",
    "RUNS",
    "Answered",
    "RetrievalStudy",
    "retrieval_study",
    "share_of",
    "shares",
]

HYPOTHESES = ("place", "meaning", "memory", "failure")
"""What an answer may be, in the order of the paper."""

_FAILURE = HYPOTHESES.index("failure")

RUNS: Mapping[str, tuple[str, str]] = {
    "clean>pairs": ("pairs", "clean"),
    "pairs>clean": ("clean", "pairs"),
    "clean>values": ("values", "clean"),
    "pairs": ("pairs", "clean"),
    "values": ("values", "clean"),
    "even>pairs": ("pairs", "clean"),
}
"""By run: the page that is read, and the page by which place and memory are told."""


@dataclass(frozen=True, eq=False)
class Answered:
    """One vocabulary.

    Attributes:
        vocabulary: keys and values.
        drawn: pages drawn and answered; 0 where this tokenizer cannot tell the values apart.
        names: [n] of the pages answered right.
        classes: [n] index into `HYPOTHESES` by run; where place and meaning are one value, place.
        looks: [n] share of attention, mean over heads, by (cross-attention, `key` or `value`).
        even: [n] by place, its share of the encoder's tokens.
        right: [n] 1 where the page is answered right without some cross-attentions, by their names.
        attention: why `looks` is empty, or "".
    """

    vocabulary: Vocabulary
    drawn: int = 0
    names: tuple[str, ...] = ()
    classes: Mapping[str, np.ndarray] | None = None
    looks: Mapping[tuple[str, str], np.ndarray] | None = None
    even: Mapping[str, np.ndarray] | None = None
    right: Mapping[str, np.ndarray] | None = None
    attention: str = ""


@dataclass(frozen=True, eq=False)
class RetrievalStudy:
    """All vocabularies.

    Attributes:
        answered: one entry each, also for those of which no page was answered right.
        crosses: the decoder's cross-attentions, the last of which is exchanged.
        seed: of the intervals.
    """

    answered: tuple[Answered, ...]
    crosses: tuple[str, ...]
    seed: int

    @property
    def usable(self) -> tuple[Answered, ...]:
        """The vocabularies with a page that is answered right."""
        return tuple(one for one in self.answered if one.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all pages answered right."""
        return tuple(name for one in self.usable for name in one.names)

    @property
    def looked(self) -> bool:
        """Whether attention on places is known."""
        return bool(self.usable) and all(one.looks for one in self.usable)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Which cross-attentions, by their names, were left out together."""
        return tuple(self.usable[0].right or ()) if self.usable else ()

    def classes(self, run: str) -> np.ndarray:
        """Return the class of every page's answer in one run, over all vocabularies."""
        return np.concatenate([one.classes[run] for one in self.usable if one.classes is not None])

    def looks(self, cross: str, place: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the shares of attention on a place, and what even attention would give."""
        found = [one.looks[cross, place] for one in self.usable if one.looks]
        even = [one.even[place] for one in self.usable if one.even]
        return np.concatenate(found), np.concatenate(even)

    def right(self, without: str) -> np.ndarray:
        """Return 1 where a page is answered right without some cross-attentions, else 0."""
        return np.concatenate([one.right[without] for one in self.usable if one.right])

    def interval(self, values: np.ndarray) -> Interval:
        """Mean over the pages of all vocabularies with its interval, every page a document."""
        if set(values.tolist()) <= {0.0, 1.0}:
            return share_of(values)
        return mean_interval(values, self.names, self.seed)


def share_of(hits: np.ndarray) -> Interval:
    """Return the share of hits [n], 0 or 1, with Wilson's interval; pages are independent draws."""
    count = int(hits.sum())
    return count / len(hits), *wilson_interval(count, len(hits))


def shares(classes: np.ndarray) -> tuple[Interval, ...]:
    """Return the share of each hypothesis among answers [n]."""
    return tuple(share_of(classes == i) for i in range(len(HYPOTHESES)))


def retrieval_study(material: Material, target: SubLayer) -> RetrievalStudy:
    """Draw the pages of every vocabulary and measure what can be measured on them.

    Args:
        material: its teacher is asked; its pages play no part.
        target: the cross-attention whose query is exchanged.
    """
    teacher, view = material.teacher, material.view
    crosses = [s for s in view.sublayers if s.kind is Kind.CROSS]
    pace = Pace.of(teacher)
    answered = []
    for vocabulary in VOCABULARIES:
        drawer = Drawer.of(vocabulary, teacher.tokens, material.seed)
        if drawer is None:
            answered.append(Answered(vocabulary))
            continue
        kept = draw_trials(teacher, drawer, pace, material.progress)
        answered.append(_measured(teacher, kept, crosses, target))
    names = tuple(s.name for s in crosses)
    return RetrievalStudy(tuple(answered), names, seed_from("retrieval", material.seed))


def _measured(
    teacher: Teacher, kept: Kept, crosses: Sequence[SubLayer], target: SubLayer
) -> Answered:
    """Measure the pages of one vocabulary."""
    if not kept.trials:
        return Answered(kept.drawer.vocabulary, kept.drawn)
    view = teacher.decoder
    tokens = said(view, kept, target)
    left_out = {s.name: [s] for s in crosses}
    left_out |= {_joined(group): list(group) for group in (crosses[1:-1], crosses[:-1])}
    looks, even, reason = _looks(teacher, kept, crosses)
    return Answered(
        vocabulary=kept.drawer.vocabulary,
        drawn=kept.drawn,
        names=tuple(trial.name for trial in kept.trials),
        classes={run: _classes(kept, run, tokens[run]) for run in RUNS},
        looks=looks,
        even=even,
        right={name: right_without(view, kept, group) for name, group in left_out.items() if name},
        attention=reason,
    )


def _joined(sublayers: Sequence[SubLayer]) -> str:
    return " ".join(s.name for s in sublayers)


def _classes(kept: Kept, run: str, tokens: np.ndarray) -> np.ndarray:
    """Return [n], which hypothesis each first token fits."""
    page, origin = RUNS[run]
    found = []
    for trial, token in zip(kept.trials, tokens.tolist(), strict=True):
        expected = trial.expected(getattr(trial, page), getattr(trial, origin))
        firsts = [kept.drawer.firsts[value] for value in expected]
        found.append(firsts.index(token) if token in firsts else _FAILURE)
    return np.array(found)


def _looks(
    teacher: Teacher, kept: Kept, crosses: Sequence[SubLayer]
) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray], str]:
    """Return attention on the places of key and value, even attention there, or why not."""
    tokens = kept.states["clean"].shape[1]
    places: dict[str, list[tuple[int, ...]]] = {"key": [], "value": []}
    for trial in kept.trials:
        found = _places(teacher, trial, tokens)
        if isinstance(found, str):
            return {}, {}, found
        for name, place in zip(places, found, strict=True):
            places[name].append(place)

    measured = place_shares(teacher.decoder, kept.sample, crosses, places)
    even = {name: np.array([len(p) / tokens for p in found]) for name, found in places.items()}
    return {key: values.mean(axis=1) for key, values in measured.items()}, even, ""


def _places(teacher: Teacher, trial: Trial, tokens: int) -> tuple[tuple[int, ...], ...] | str:
    """Return the encoder tokens under the asked key and under its value on the clean page."""
    size = teacher.processor.image_processor.size
    layout = layout_of(trial.clean, size["height"], size["width"])
    found = text_places(teacher, layout, tokens)
    if isinstance(found, str):
        return found
    line = trial.place(trial.clean)
    end = len(layout.lines[line].text)
    start = end - len(trial.answer(trial.clean))
    return found.of(line, 0, len(trial.key)), found.of(line, start, end)
