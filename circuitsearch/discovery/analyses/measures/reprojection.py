"""Losses with vectors replaced by nearest tokens, and those tokens; see `reprojection`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from circuitsearch.core.components import SubLayer
from circuitsearch.core.files import seed_from
from circuitsearch.discovery.lens.embeddings import FORMS
from circuitsearch.discovery.lens.reprojection import (
    LensNorm,
    ReprojectionOptions,
    nearest_tokens,
    reprojection_effects,
)
from circuitsearch.discovery.lens.stream import places_of
from circuitsearch.discovery.patching.components import Effects, sample_metric
from circuitsearch.teacher.decoders import ResidualDecoder

from ..material import Material
from ..shared import Averages, Interval, share_interval, without_end

__all__ = ["Reprojected", "Tokens", "measured", "nearest"]

_DEFAULT = ReprojectionOptions()

_NORMS: Mapping[LensNorm, str] = {"final": "final norm", "none": "no norm"}


@dataclass(frozen=True)
class Reprojected:
    """What replacing costs.

    Attributes:
        averages: of the questions.
        clean: [n] loss of each question, nats per answer token.
        effects: [n] rise of the loss by reading and sub-layer; the default reading comes first.
        bare: averages and rises of the default reading without closing tags; None where they
            cannot be told apart.
    """

    averages: Averages
    clean: np.ndarray
    effects: Mapping[str, Effects]
    bare: tuple[Averages, Effects] | None

    @property
    def default(self) -> Effects:
        """Rises of the default reading."""
        return next(iter(self.effects.values()))

    def mean(self, values: np.ndarray) -> float:
        """Mean over answer tokens."""
        return float(np.average(values, weights=self.averages.tokens))


@dataclass(frozen=True)
class Tokens:
    """What the K prompt tokens of a sample read as up to the first feed-forward.

    Attributes:
        kept: [K] whether each reads as itself, by place.
        special: [K] whether it is a special token.
        inputs: [K] its text.
        readings: [K] the text that it reads as at the last place.
        examples: [K] its question.
        documents: [K] its document.
        seed: of the bootstrap's draws.
    """

    kept: Mapping[str, np.ndarray]
    special: np.ndarray
    inputs: tuple[str, ...]
    readings: tuple[str, ...]
    examples: np.ndarray
    documents: tuple[str, ...]
    seed: int

    @property
    def last(self) -> str:
        """The place right in front of the first feed-forward."""
        return list(self.kept)[-1]

    def share(self, hits: np.ndarray, chosen: np.ndarray) -> Interval:
        """Return the share of hits among chosen tokens, [K] both, with its interval."""
        documents = [self.documents[i] for i in np.flatnonzero(chosen)]
        return share_interval(hits[chosen], documents, self.seed)

    def gaps(self) -> tuple[list[float], list[str]]:
        """Return by question how much more often special tokens change, and its document."""
        changed = ~self.kept[self.last]
        gaps, documents = [], []
        for example in np.unique(self.examples):
            here = self.examples == example
            special, other = here & self.special, here & ~self.special
            if special.any() and other.any():
                gaps.append(float(changed[special].mean() - changed[other].mean()))
                documents.append(self.documents[int(np.argmax(here))])
        return gaps, documents

    def commonest(self) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        """Yield each special token, its commonest reading, where it reads so, where it stands."""
        inputs, readings = np.array(self.inputs), np.array(self.readings)
        for tag in dict.fromkeys(inputs[self.special].tolist()):
            chosen = inputs == tag
            counts = Counter(readings[chosen].tolist())
            reading = min(counts, key=lambda text: (-counts[text], text))
            yield tag, reading, readings == reading, chosen


def measured(material: Material) -> Reprojected:
    """Replace the stream of a material's `pages` at every sub-layer, under every reading."""
    view, sample, progress = material.view, material.sample, material.progress
    seed = seed_from("reprojection", sample.fingerprint, material.seed)
    effects = {
        reading: reprojection_effects(view, sample, options, progress=progress)
        for reading, options in _readings(view).items()
    }
    default = next(iter(effects.values()))
    # behind a sub-layer is in front of the next one: only behind the last one is new
    names = [sublayer.name for sublayer in view.sublayers]
    end = replace(_DEFAULT, at="output")
    last = reprojection_effects(view, sample, end, sublayers=names[-1:], progress=progress)
    effects[f"{_name(_DEFAULT)}, behind the sub-layer"] = {
        **{name: default[following] for name, following in pairwise(names)},
        **last,
    }
    bare = without_end(sample, material.teacher.tokens.answer_ids(""))
    return Reprojected(
        averages=Averages.of(sample, seed),
        clean=sample_metric(view, sample),
        effects=effects,
        bare=None
        if bare is None
        else (Averages.of(bare, seed), reprojection_effects(view, bare, progress=progress)),
    )


def nearest(material: Material, first: SubLayer) -> Tokens:
    """Read the prompt's tokens at every place in front of the first feed-forward."""
    view, sample, tokenizer = material.view, material.sample, material.teacher.tokens.tokenizer
    places = places_of(view)
    places = places[: places.index(first.name)]
    reading = nearest_tokens(view, sample, places=places, progress=material.progress)
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    tops = reading.top[:, :, 0]
    return Tokens(
        kept={place: top == reading.inputs for place, top in zip(places, tops, strict=True)},
        special=np.isin(reading.inputs, sorted(special)),
        inputs=tuple(tokenizer.convert_ids_to_tokens(reading.inputs.tolist())),
        readings=tuple(map(str, tokenizer.convert_ids_to_tokens(tops[-1].tolist()))),
        examples=reading.examples,
        documents=tuple(sample.documents[i] for i in reading.examples),
        seed=seed_from("reprojection tokens", sample.fingerprint, material.seed),
    )


def _readings(view: ResidualDecoder) -> dict[str, ReprojectionOptions]:
    """Return options by name: every norm and embedding, and the prompt alone."""
    # other forms than the full one need the pieces of the embedding, which an adapter may not show
    forms = FORMS if getattr(view, "embedding", None) is not None else FORMS[:1]
    options = [replace(_DEFAULT, norm=norm, into=form) for norm in _NORMS for form in forms]
    found = {_name(one): one for one in options}
    return {**found, f"{_name(_DEFAULT)}, prompt only": replace(_DEFAULT, positions="prompt")}


def _name(options: ReprojectionOptions) -> str:
    """Name norm and embedding."""
    return f"{_NORMS[options.norm]}, {options.into} embedding"
